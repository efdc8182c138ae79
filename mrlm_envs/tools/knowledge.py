"""The knowledge tool: full-text search (SQLite FTS5) over the package's encyclopedia, or over pages of your own."""

import functools
import os
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from mrlm_envs.search import FullText
from mrlm_envs.tasks import Source, Tasks, field
from mrlm_envs.tools import corpus
from mrlm_envs.tools.registry import ToolError, Toolset, tool

RESULTS = 5  # pages a search shows
_OPENING = 160  # characters of a page in a list of results


class Page(NamedTuple):
    """A page to search for, and the file and row that it comes from."""

    title: str
    text: str
    where: str

    @property
    def task_id(self) -> str:
        """The title: the name of a row, as `Tasks` wants it."""
        return self.title


class Knowledge(Toolset):
    """Search and read pages. Stateless, so one may serve many episodes; thread-safe.

    Args:
        pages: Title and text of each, and where it comes from, for errors.

    Raises:
        ValueError: Two pages have one title.
    """

    def __init__(self, pages: Iterable[tuple[str, ...]]) -> None:
        self._pages: dict[str, str] = {}
        for title, text, *where in pages:
            if title in self._pages:
                place = where[0] if where else "corpus"
                raise ValueError(f"{place}: a second page is titled {title!r}; give each page a title of its own")
            self._pages[title] = text
        self._titles = {_folded(title): title for title in self._pages}
        self._index = FullText(self._pages.items())

    @classmethod
    def of(cls, source: Source | None) -> "Knowledge":
        """The index of this process over a source (see `mrlm_envs.tasks`), by default over the package's encyclopedia.

        Raises:
            FileNotFoundError: No such file.
            ValueError: A row lacks `title` or `text`, or two have one title.
        """
        pages = corpus.pages() if source is None else Tasks(source, "all", _page, "corpus").rows
        return _shared(pages, os.getpid())

    @tool
    def search(self, query: str) -> str:
        """Searches the encyclopedia and lists the best pages, each with its title and beginning.

        Args:
            query: A few words, such as a name.
        """
        found = self._index.search(query, RESULTS)
        if found is None:
            raise ToolError("the query has no words")
        if not found:
            return "no page has any of these words"
        pages = list(self._pages.items())
        return "\n".join(f"{title}: {_cut(text)}" for title, text in (pages[place] for place in found))

    @tool
    def read_page(self, title: str) -> str:
        """Shows the whole page with this title.

        Args:
            title: The title, as search lists it.
        """
        known = title if title in self._pages else self._titles.get(_folded(title))
        if known is None:
            raise ToolError(f"there is no page {title[:100]!r}; search for it")
        return self._pages[known]


def _folded(title: str) -> str:
    return " ".join(title.casefold().split())


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _OPENING else f"{text[:_OPENING].rsplit(' ', 1)[0]} …"


@functools.lru_cache(maxsize=8)  # by process: a forked child may not use its parent's connection
def _shared(pages: tuple[tuple[str, ...], ...], pid: int) -> Knowledge:
    return Knowledge(pages)


def _page(row: Mapping[str, Any], number: int, source: str) -> Page:
    where = f"corpus {source}, row {number}"
    return Page(field(row, "title", where, str), field(row, "text", where, str), where)
