"""The same training on several GPUs, or several processes: a launcher starts this file once for each of them.

    python examples/train_distributed_ppo.py                                          # one process
    torchrun --nproc_per_node 2 examples/train_distributed_ppo.py                     # two: on GPUs, else on CPUs
    accelerate launch --config_file mrlm_train/launch/fsdp.yaml examples/train_distributed_ppo.py --model …

Nothing in it knows of processes: each plays its own share of the episodes, gradients and figures are over all of them.
The strategy (DDP, FSDP, DeepSpeed) is the launcher's; docs/scaling.md says which for which size of model. From a YAML
file `distributed: {strategy: fsdp, num_processes: 8}` starts the processes itself: configs/math_ppo_distributed.yaml.
"""

import torch
import tyro

from mrlm_train import PPOConfig, PPOTrainer


def main(model: str = "tiny", learning_rate: float = 3e-4, max_steps: int = 3, output_dir: str = "runs/distributed"):
    config = PPOConfig(
        output_dir=output_dir,
        learning_rate=learning_rate,
        max_steps=max_steps,
        per_device_train_batch_size=8,  # of each process
        gradient_accumulation_steps=2,
        max_completion_length=32,
        use_cpu=not torch.cuda.is_available(),
        eval_episodes=16,
        report_to="none",
    )
    trainer = PPOTrainer(
        model=model,
        envs={"id": "mrlm/Math-v0", "kwargs": {"kinds": ["addition"], "difficulty": [1, 1], "system_prompt": ""}},
        args=config,
    )
    trainer.train()
    trainer.save_model(f"{output_dir}/final")  # gathers a sharded model; the first process writes
    metrics = trainer.evaluate()  # every process plays its share
    if trainer.is_world_process_zero():
        print(f"{trainer.accelerator.num_processes} processes: {metrics['eval_n']:.0f} evaluation episodes")
    trainer.accelerator.end_training()


if __name__ == "__main__":
    tyro.cli(main)
