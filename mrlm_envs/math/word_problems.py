"""Endless word problems: short stories with everyday numbers.

A story is a function `(draw, n) -> (operands, question, answer, steps)`: `n` bounds its numbers, the operands are all
that its task id keeps, so two problems that differ in names, things or units alone are the same task. Stories of one
step make up difficulty 1, two come in from 2, three from 5, and from 8 on there are only those.
"""

from math import gcd

from mrlm_envs.math.generators import SIZE, Draw, Problem, ratio, solved

NAMES = (
    "Ada", "Amir", "Ana", "Ben", "Bo", "Chen", "Clara", "Dana", "David", "Elif", "Emma", "Farid", "Fatima", "Grace",
    "Hana", "Hugo", "Ines", "Ivan", "Jamal", "Julia", "Kofi", "Lena", "Leo", "Lucia", "Maria", "Mei", "Milan",
    "Nadia", "Noah", "Nora", "Olga", "Omar", "Paul", "Priya", "Rosa", "Sam", "Sofia", "Tariq", "Tom", "Uma",
    "Victor", "Wei", "Yara", "Zoe",
)  # fmt: skip
THINGS = (
    "apples", "marbles", "stickers", "books", "pencils", "cards", "shells", "coins", "oranges", "cookies", "beads",
    "stamps", "balloons", "photos", "magnets", "postcards", "buttons", "candles", "plums", "ribbons",
)  # fmt: skip
GOODS = ("notebooks", "tickets", "mugs", "plants", "lamps", "scarves", "puzzles", "T-shirts", "bags of rice", "cakes")
BOXES = ("boxes", "bags", "baskets", "crates", "shelves", "drawers", "jars")
LENGTHS = ("metres", "feet", "yards", "centimetres", "inches")
DISTANCES = ("kilometres", "miles")
DRINKS = ("water", "juice", "milk", "tea", "lemonade")

Story = tuple[tuple[int, ...], str, object, tuple[str, ...]]


def word_problems(draw: Draw, difficulty: int) -> Problem:
    """One of the stories; its numbers grow with the difficulty."""
    stories = (
        ONE_STEP if difficulty < 2 else ONE_OR_TWO if difficulty < 5 else LONGER if difficulty < 8 else THREE_STEPS
    )
    story = draw.choice(stories)
    operands, question, answer, steps = story(draw, max(SIZE[difficulty], 10))
    key = f"{story.__name__.strip('_')}:{','.join(map(str, operands))}"
    return solved("word_problems", key, question, answer, *steps)


# One step.


def _more(draw: Draw, n: int) -> Story:
    a, b, who, thing = draw.between(2, n), draw.between(2, n), draw.choice(NAMES), draw.choice(THINGS)
    question = f"{who} has {a} {thing} and gets {b} more. How many {thing} does {who} have now?"
    return (min(a, b), max(a, b)), question, a + b, (f"{a} + {b} = {a + b}",)


def _together(draw: Draw, n: int) -> Story:
    a, b, (who, other), thing = draw.between(2, n), draw.between(2, n), draw.pair(NAMES), draw.choice(THINGS)
    question = f"{who} found {a} {thing} and {other} found {b} {thing}. How many {thing} did they find together?"
    return (min(a, b), max(a, b)), question, a + b, (f"{a} + {b} = {a + b}",)


def _left(draw: Draw, n: int) -> Story:
    b, rest, (who, other), thing = draw.between(2, n), draw.between(2, n), draw.pair(NAMES), draw.choice(THINGS)
    a = b + rest
    question = f"{who} has {a} {thing} and gives {b} of them to {other}. How many {thing} does {who} have left?"
    return (a, b), question, rest, (f"{a} - {b} = {rest}",)


def _difference(draw: Draw, n: int) -> Story:
    b, gap, (who, other) = draw.between(2, n), draw.between(1, n), draw.pair(NAMES)
    a = b + gap
    question = f"{who} read {a} pages and {other} read {b} pages. How many more pages did {who} read than {other}?"
    return (a, b), question, gap, (f"{a} - {b} = {gap}",)


def _packs(draw: Draw, n: int) -> Story:
    a, b, thing, box = draw.between(2, n), draw.between(2, n), draw.choice(THINGS), draw.choice(BOXES)
    question = f"There are {a} {box} with {b} {thing} in each. How many {thing} are there in all?"
    return (a, b), question, a * b, (f"{a} * {b} = {a * b}",)


def _shared(draw: Draw, n: int) -> Story:
    each, friends, who, thing = draw.between(2, n), draw.between(2, 12), draw.choice(NAMES), draw.choice(THINGS)
    total = each * friends
    question = f"{who} shares {total} {thing} equally among {friends} friends. How many {thing} does each friend get?"
    return (total, friends), question, each, (f"{total} / {friends} = {each}",)


def _filled(draw: Draw, n: int) -> Story:
    each, count, thing, box = draw.between(2, 12), draw.between(2, n), draw.choice(THINGS), draw.choice(BOXES)
    total = each * count
    question = f"{total} {thing} are put into {box} of {each}. How many {box} are filled?"
    return (total, each), question, count, (f"{total} / {each} = {count}",)


def _price(draw: Draw, n: int) -> Story:
    a, b, who, goods = draw.between(2, n), draw.between(2, n), draw.choice(NAMES), draw.choice(GOODS)
    question = f"{who} buys {a} {goods} for ${b} each. How many dollars does {who} pay?"
    return (a, b), question, a * b, (f"{a} * {b} = {a * b}",)


def _speed(draw: Draw, n: int) -> Story:
    hours, speed, unit = draw.between(2, 9), draw.between(10, 20 + n), draw.choice(DISTANCES)
    question = f"A train travels {speed} {unit} an hour for {hours} hours. How many {unit} does it travel?"
    return (speed, hours), question, speed * hours, (f"{speed} * {hours} = {speed * hours}",)


def _cut(draw: Draw, n: int) -> Story:
    pieces, each, unit = draw.between(2, 12), draw.between(2, n), draw.choice(LENGTHS)
    total = pieces * each
    question = f"A rope of {total} {unit} is cut into {pieces} equal pieces. How many {unit} long is each piece?"
    return (total, pieces), question, each, (f"{total} / {pieces} = {each}",)


def _age(draw: Draw, n: int) -> Story:
    age, years, who = draw.between(3, 20 + n % 60), draw.between(2, 30), draw.choice(NAMES)
    question = f"{who} is {age} years old. How old will {who} be {years} years from now?"
    return (age, years), question, age + years, (f"{age} + {years} = {age + years}",)


def _temperature(draw: Draw, n: int) -> Story:
    start, drop = draw.between(1, n), draw.between(2, n)
    question = (
        f"It is {start} degrees in the evening and {drop} degrees colder in the morning. How many degrees is it then?"
    )
    return (start, drop), question, start - drop, (f"{start} - {drop} = {start - drop}",)


def _weeks(draw: Draw, n: int) -> Story:
    weeks, days = draw.between(2, n), draw.between(1, 6)
    total = weeks * 7 + days
    question = f"A trip takes {weeks} weeks and {days} {'day' if days == 1 else 'days'}. How many days is that?"
    return (weeks, days), question, total, (f"{weeks} * 7 + {days} = {total}",)


def _rate(draw: Draw, n: int) -> Story:
    rate, minutes = draw.between(2, n), draw.between(2, 12)
    total = rate * minutes
    question = f"A machine fills {total} bottles in {minutes} minutes. How many bottles does it fill in one minute?"
    return (total, minutes), question, rate, (f"{total} / {minutes} = {rate}",)


# Two steps.


def _shop_change(draw: Draw, n: int) -> Story:
    a, b, extra = draw.between(2, 12), draw.between(2, n), draw.between(1, n)
    who, goods, paid = draw.choice(NAMES), draw.choice(GOODS), a * b + extra
    question = f"{who} buys {a} {goods} at ${b} each and pays with ${paid}. How many dollars does {who} get back?"
    return (a, b, paid), question, extra, (f"{a} * {b} = {a * b}", f"{paid} - {a * b} = {extra}")


def _two_goods(draw: Draw, n: int) -> Story:
    a, b, c, d = draw.between(2, 12), draw.between(2, n), draw.between(2, 12), draw.between(2, n)
    who, (goods, others) = draw.choice(NAMES), draw.pair(GOODS)
    total = a * b + c * d
    question = (
        f"{who} buys {a} {goods} for ${b} each and {c} {others} for ${d} each. How many dollars does it cost in total?"
    )
    steps = (f"{a} * {b} = {a * b}", f"{c} * {d} = {c * d}", f"{a * b} + {c * d} = {total}")
    return tuple(x for pair in sorted(((a, b), (c, d))) for x in pair), question, total, steps


def _times_as_many(draw: Draw, n: int) -> Story:
    a, k, (who, other), thing = draw.between(2, n), draw.between(2, 9), draw.pair(NAMES), draw.choice(THINGS)
    question = f"{who} has {a} {thing}. {other} has {k} times as many. How many {thing} do they have together?"
    return (a, k), question, a * k + a, (f"{a} * {k} = {a * k}", f"{a} + {a * k} = {a * k + a}")


def _more_than(draw: Draw, n: int) -> Story:
    a, b, (who, other), thing = draw.between(2, n), draw.between(2, n), draw.pair(NAMES), draw.choice(THINGS)
    question = f"{who} has {a} {thing}. {other} has {b} more than {who}. How many {thing} do the two have together?"
    return (a, b), question, 2 * a + b, (f"{a} + {b} = {a + b}", f"{a} + {a + b} = {2 * a + b}")


def _eaten(draw: Draw, n: int) -> Story:
    a, b, box = draw.between(2, 12), draw.between(2, n), draw.choice(BOXES)
    gone, who = draw.between(1, a * b - 1), draw.choice(NAMES)
    question = f"{who} has {a} {box} of {b} cookies each. {gone} of the cookies are eaten. How many cookies are left?"
    if gone == 1:
        question = question.replace("1 of the cookies are eaten", "1 of the cookies is eaten")
    return (a, b, gone), question, a * b - gone, (f"{a} * {b} = {a * b}", f"{a * b} - {gone} = {a * b - gone}")


def _rows(draw: Draw, n: int) -> Story:
    a, b, empty = draw.between(3, 12), draw.between(3, n), draw.between(2, 8)
    place = draw.choice(("theatre", "cinema", "hall", "church", "bus station"))
    question = f"A {place} has {a} rows of {b} seats. {empty} seats are empty. How many seats are taken?"
    return (a, b, empty), question, a * b - empty, (f"{a} * {b} = {a * b}", f"{a * b} - {empty} = {a * b - empty}")


def _saving(draw: Draw, n: int) -> Story:
    have, week, weeks = draw.between(2, n), draw.between(2, n), draw.between(2, 12)
    goal, who = have + week * weeks, draw.choice(NAMES)
    question = f"{who} has ${have} and saves ${week} a week. After how many weeks does {who} have ${goal}?"
    return (
        (have, week, goal),
        question,
        weeks,
        (f"{goal} - {have} = {goal - have}", f"{goal - have} / {week} = {weeks}"),
    )


def _fraction_of(draw: Draw, n: int) -> Story:
    bottom = draw.between(2, 9)
    top, unit = draw.between(1, bottom - 1), draw.between(2, n)
    common = gcd(top, bottom)
    top, bottom = top // common, bottom // common
    total, who, thing = unit * bottom, draw.choice(NAMES), draw.choice(THINGS)
    question = f"{who} has {total} {thing} and gives away {top}/{bottom} of them. How many {thing} does {who} keep?"
    kept = total - unit * top
    return (
        (total, top, bottom),
        question,
        kept,
        (f"{total} * {top}/{bottom} = {unit * top}", f"{total} - {unit * top} = {kept}"),
    )


def _discount(draw: Draw, n: int) -> Story:
    percent, k = draw.choice((10, 20, 25, 30, 40, 50, 60, 75)), draw.between(1, n)
    price = k * 100 // gcd(percent, 100)
    off = price * percent // 100
    question = (
        f"A coat costs ${price}. In the sale it is {percent}% cheaper. How many dollars does it cost in the sale?"
    )
    return (
        (price, percent),
        question,
        price - off,
        (f"{price} * {percent} / 100 = {off}", f"{price} - {off} = {price - off}"),
    )


def _catch_bus(draw: Draw, n: int) -> Story:
    start, off, on = draw.between(10, 20 + n), draw.between(2, 9), draw.between(2, n)
    question = (
        f"A bus carries {start} people. At a stop {off} get off and {on} get on. How many people are on the bus then?"
    )
    end = start - off + on
    return (start, off, on), question, end, (f"{start} - {off} = {start - off}", f"{start - off} + {on} = {end}")


def _drink(draw: Draw, n: int) -> Story:
    glasses, each, rest, drink = (
        draw.between(2, 9),
        draw.between(2, n) * 10,
        draw.between(1, n) * 5,
        draw.choice(DRINKS),
    )
    total = glasses * each + rest
    question = (
        f"From a can with {total} ml of {drink}, {glasses} glasses of {each} ml are filled. How many ml are left?"
    )
    steps = (f"{glasses} * {each} = {glasses * each}", f"{total} - {glasses * each} = {rest}")
    return (total, glasses, each), question, rest, steps


def _minutes(draw: Draw, n: int) -> Story:
    hours, minutes, pause = draw.between(1, 9), draw.between(1, 59), draw.between(2, 45)
    who, total = draw.choice(NAMES), hours * 60 + minutes - pause
    span = f"{hours} {'hour' if hours == 1 else 'hours'} and {minutes} {'minute' if minutes == 1 else 'minutes'}"
    question = (
        f"{who} spends {span} in the gym, of which {pause} minutes are breaks. How many minutes does {who} train?"
    )
    steps = (f"{hours} * 60 + {minutes} = {total + pause}", f"{total + pause} - {pause} = {total}")
    return (hours, minutes, pause), question, total, steps


def _wages(draw: Draw, n: int) -> Story:
    pay, hours, days = draw.between(9, 15 + n), draw.between(2, 9), draw.between(2, 6)
    who = draw.choice(NAMES)
    question = (
        f"{who} earns ${pay} an hour and works {hours} hours a day. How many dollars does {who} earn in {days} days?"
    )
    total = pay * hours * days
    return (
        (pay, hours, days),
        question,
        total,
        (f"{pay} * {hours} = {pay * hours}", f"{pay * hours} * {days} = {total}"),
    )


def _average(draw: Draw, n: int) -> Story:
    mean, a, b = draw.between(8, 10 + n), draw.between(0, 7), draw.between(0, 7)
    scores = (mean - a, mean + a + b, mean - b)
    who, total = draw.choice(NAMES), 3 * mean
    question = (
        f"{who} scores {scores[0]}, {scores[1]} and {scores[2]} points in three games. What is the average score?"
    )
    steps = (f"{scores[0]} + {scores[1]} + {scores[2]} = {total}", f"{total} / 3 = {mean}")
    return tuple(sorted(scores)), question, mean, steps


def _fence(draw: Draw, n: int) -> Story:
    width, length = sorted((draw.between(2, n), draw.between(2, n)))
    price, (unit, one) = draw.between(2, 20), draw.choice((("metres", "A metre"), ("feet", "A foot")))
    around = 2 * (width + length)
    question = (
        f"A garden is {length} {unit} long and {width} {unit} wide. {one} of fence costs ${price}. "
        "How many dollars does a fence around the garden cost?"
    )
    steps = (f"2 * ({length} + {width}) = {around}", f"{around} * {price} = {around * price}")
    return (width, length, price), question, around * price, steps


def _recipe(draw: Draw, n: int) -> Story:
    people, each, more = draw.between(2, 9), draw.between(2, n) * 5, draw.between(2, 12)
    who = draw.choice(NAMES)
    question = (
        f"A recipe for {people} people takes {people * each} grams of flour. "
        f"How many grams does {who} need for {more} people?"
    )
    steps = (f"{people * each} / {people} = {each}", f"{each} * {more} = {each * more}")
    return (people, people * each, more), question, each * more, steps


# Three steps and more.


def _profit(draw: Draw, n: int) -> Story:
    count, cost, gain, broken = draw.between(12, 12 + n), draw.between(2, 20), draw.between(1, 20), draw.between(2, 9)
    price, who, goods = cost + gain, draw.choice(NAMES), draw.choice(GOODS)
    sold = count - broken
    profit = sold * price - count * cost
    question = (
        f"{who} buys {count} {goods} for ${cost} each. {broken} of them get lost; the rest sell for ${price} each. "
        "What is the profit in dollars (negative for a loss)?"
    )
    steps = (
        f"{count} * {cost} = {count * cost}", f"{count} - {broken} = {sold}",
        f"{sold} * {price} = {sold * price}", f"{sold * price} - {count * cost} = {profit}",
    )  # fmt: skip
    return (count, cost, broken, price), question, profit, steps


def _trip(draw: Draw, n: int) -> Story:
    a, b, c, d = draw.between(2, 6), draw.between(20, 40 + n % 60), draw.between(2, 6), draw.between(20, 40 + n % 60)
    unit, who = draw.choice(DISTANCES), draw.choice(NAMES)
    rest = draw.between(5, 10 + n)
    total = a * b + c * d + rest
    question = (
        f"{who} wants to drive {total} {unit}: first {a} hours at {b} {unit} an hour, "
        f"then {c} hours at {d} {unit} an hour. How many {unit} remain after that?"
    )
    steps = (
        f"{a} * {b} = {a * b}", f"{c} * {d} = {c * d}", f"{a * b} + {c * d} = {a * b + c * d}",
        f"{total} - {a * b + c * d} = {rest}",
    )  # fmt: skip
    return (total, *(x for pair in sorted(((a, b), (c, d))) for x in pair)), question, rest, steps


def _ages(draw: Draw, n: int) -> Story:
    young, k, years, (who, other) = draw.between(3, 20), draw.between(2, 4), draw.between(2, 20), draw.pair(NAMES)
    old = young * k
    total = old + young + 2 * years
    question = (
        f"{who} is {k} times as old as {other}, who is {young}. What will be the sum of their ages in {years} years?"
    )
    steps = (f"{young} * {k} = {old}", f"{young} + {old} = {young + old}", f"{young + old} + 2 * {years} = {total}")
    return (young, k, years), question, total, steps


def _three_friends(draw: Draw, n: int) -> Story:
    a, k, b = draw.between(2, n), draw.between(2, 9), draw.between(2, n)
    who, other = draw.pair(NAMES[:22])
    third, thing = draw.choice(NAMES[22:]), draw.choice(THINGS)
    total = a + a * k + a * k + b
    question = (
        f"{who} has {a} {thing}, {other} has {k} times as many, and {third} has {b} more than {other}. "
        f"How many {thing} do the three have in all?"
    )
    steps = (
        f"{a} * {k} = {a * k}", f"{a * k} + {b} = {a * k + b}", f"{a} + {a * k} + {a * k + b} = {total}",
    )  # fmt: skip
    return (a, k, b), question, total, steps


def _half_then(draw: Draw, n: int) -> Story:
    left, bought, given = draw.between(3, n), draw.between(2, n), draw.between(2, n)
    start = 2 * (left + given)
    who, thing, end = draw.choice(NAMES), draw.choice(THINGS), left + bought
    question = (
        f"{who} has {start} {thing}, sells half of them, gives away {given} more and then buys {bought} new ones. "
        f"How many {thing} does {who} have now?"
    )
    steps = (f"{start} / 2 = {start // 2}", f"{start // 2} - {given} = {left}", f"{left} + {bought} = {end}")
    return (start, given, bought), question, end, steps


def _work_together(draw: Draw, n: int) -> Story:
    a, b, hours, (who, other) = draw.between(2, n), draw.between(2, n), draw.between(2, 12), draw.pair(NAMES)
    extra = draw.between(1, (a + b) * hours)
    target = (a + b) * hours + extra
    question = (
        f"{who} packs {a} parcels an hour and {other} packs {b} an hour. There are {target} parcels. "
        f"How many are still unpacked after the two have worked for {hours} hours?"
    )
    steps = (f"{a} + {b} = {a + b}", f"{a + b} * {hours} = {target - extra}", f"{target} - {target - extra} = {extra}")
    return (min(a, b), max(a, b), target, hours), question, extra, steps


def _tank(draw: Draw, n: int) -> Story:
    flow, leak, start = draw.between(6, 10 + n), draw.between(1, 5), draw.between(2, n)
    minutes = draw.between(3, 30)
    end = start + (flow - leak) * minutes
    question = (
        f"A tank holds {start} litres. Each minute {flow} litres flow in and {leak} flow out. "
        f"After how many minutes does it hold {end} litres?"
    )
    steps = (
        f"{flow} - {leak} = {flow - leak}",
        f"{end} - {start} = {end - start}",
        f"{end - start} / {flow - leak} = {minutes}",
    )
    return (start, flow, leak, end), question, minutes, steps


def _mixture(draw: Draw, n: int) -> Story:
    a, b, c, d = draw.between(2, 12), draw.between(2, 9), draw.between(2, 12), draw.between(2, 9)
    total, weight = a * b + c * d, a + c
    price = ratio(total, weight)
    question = (
        f"{a} kg of nuts at ${b} per kg are mixed with {c} kg of raisins at ${d} per kg. "
        f"How many dollars is one kg of the mixture worth? Give a whole number or a fraction in lowest terms."
    )
    steps = (f"{a} * {b} + {c} * {d} = {total}", f"{a} + {c} = {weight}", f"{total} / {weight} = {price}")
    return tuple(x for pair in sorted(((a, b), (c, d))) for x in pair), question, price, steps


def _school(draw: Draw, n: int) -> Story:
    classes, each, buses, seats = draw.between(3, 12), draw.between(12, 30), draw.between(2, 4), draw.between(20, 40)
    total = classes * each + classes
    riding = min(total, buses * seats)
    question = (
        f"{classes} classes of {each} pupils, each with one teacher, go on a trip. There are {buses} buses with "
        f"{seats} seats each; whoever finds no seat goes by train. How many people go by train?"
    )
    steps = (
        f"{classes} * ({each} + 1) = {total}",
        f"{buses} * {seats} = {buses * seats}",
        f"{total} - {riding} = {total - riding}",
    )
    return (classes, each, buses, seats), question, total - riding, steps


def _salary(draw: Draw, n: int) -> Story:
    pay, percent, months = draw.between(10, 20 + n) * 100, draw.choice((20, 25, 30, 40)), draw.between(2, 12)
    rent = draw.between(2, 6) * 100
    tax = pay * percent // 100
    saved = (pay - tax - rent) * months
    question = (
        f"{draw.choice(NAMES)} earns ${pay} a month, pays {percent}% of it in taxes and ${rent} in rent. "
        f"How many dollars are left over from {months} months?"
    )
    steps = (
        f"{pay} * {percent} / 100 = {tax}", f"{pay} - {tax} - {rent} = {pay - tax - rent}",
        f"{pay - tax - rent} * {months} = {saved}",
    )  # fmt: skip
    return (pay, percent, rent, months), question, saved, steps


def _heads_and_legs(draw: Draw, n: int) -> Story:
    hens, cows = draw.between(2, n), draw.between(2, n)
    heads, legs = hens + cows, 2 * hens + 4 * cows
    question = (
        f"A farm has only hens and cows. Together they have {heads} heads and {legs} legs. How many cows are there?"
    )
    steps = (f"2 * {heads} = {2 * heads}", f"{legs} - {2 * heads} = {2 * cows}", f"{2 * cows} / 2 = {cows}")
    return (heads, legs), question, cows, steps


def _consecutive(draw: Draw, n: int) -> Story:
    first, count = draw.between(2, n), draw.choice((3, 5, 7))
    total = count * (first + count // 2)
    question = f"The sum of {count} consecutive whole numbers is {total}. What is the smallest of them?"
    middle = first + count // 2
    return (count, total), question, first, (f"{total} / {count} = {middle}", f"{middle} - {count // 2} = {first}")


def _share_ratio(draw: Draw, n: int) -> Story:
    a, b, unit, (who, other) = draw.between(2, 9), draw.between(2, 9), draw.between(2, n), draw.pair(NAMES)
    common = gcd(a, b)
    a, b = a // common, b // common
    total = (a + b) * unit
    question = f"{who} and {other} share ${total} in the ratio {a} : {b}. How many dollars does {who} get?"
    steps = (f"{a} + {b} = {a + b}", f"{total} / {a + b} = {unit}", f"{unit} * {a} = {unit * a}")
    return (total, a, b), question, unit * a, steps


ONE_STEP = (
    _more, _together, _left, _difference, _packs, _shared, _filled, _price, _speed, _cut, _age, _temperature, _weeks,
    _rate,
)  # fmt: skip
TWO_STEPS = (
    _shop_change, _two_goods, _times_as_many, _more_than, _eaten, _rows, _saving, _fraction_of, _discount,
    _catch_bus, _drink, _minutes, _wages, _average, _fence, _recipe,
)  # fmt: skip
THREE_STEPS = (
    _profit, _trip, _ages, _three_friends, _half_then, _work_together, _tank, _mixture, _school, _salary,
    _heads_and_legs, _consecutive, _share_ratio,
)  # fmt: skip
ONE_OR_TWO, LONGER = ONE_STEP + TWO_STEPS, TWO_STEPS + THREE_STEPS
