"""What would make a plan fit: each change alone, with the bytes that it is estimated to save."""

from s1jax.plan.result import TrainPlan, kept_bytes
from s1jax.plan.topology import GIB, Topology


def options(plan: TrainPlan, where: Topology) -> dict[str, int]:
    """Change -> bytes a device that it saves, by arithmetic; the cheapest in time first."""
    config, parts, mesh = plan.config, plan.memory.parts, plan.mesh
    found = {}
    moments = 2 * parts["parameters"]  # both of them in float32
    if not config.offload_optimizer:
        for name in ("mu", "nu"):
            if getattr(config.optimizer, name) == "float32":
                found[f"optimizer.{name}=bfloat16"] = moments // 4
    kept = kept_bytes(plan.model, config.micro_batch * plan.length // mesh.shape["context"], "full")
    ways = mesh.shape["context"] * 2
    if plan.model.K % (ways * mesh.shape["tensor"]) == 0 and mesh.shape["fsdp"] % 2 == 0:
        found[f"mesh.fsdp={mesh.shape['fsdp'] // 2} mesh.context={ways}"] = kept // 2
    if config.remat in ("none", "dots", "attention"):
        found["remat=full"] = max(0, parts["activations"] - 2 * kept)
    elif config.remat == "full":
        found["remat=offload"] = kept
    if not config.offload_optimizer:
        found["offload_optimizer=true"] = parts["optimizer"]
    held = sum(parts.get(name, 0) for name in ("base", "parameters", "optimizer", "gradients"))
    found[f"twice the devices ({2 * len(where.devices)})"] = held // 2
    return {change: saved for change, saved in found.items() if saved > 0}


def line(plan: TrainPlan, where: Topology) -> str:
    """By how much it does not fit, and what saves how much."""
    over = plan.memory.over
    listed = [
        f"{change} saves about {saved / GIB:.1f}{' (enough)' if saved >= over else ''}"
        for change, saved in options(plan, where).items()
    ]
    return f"over by {over / GIB:.2f} GiB. To make it fit: {'; '.join(listed)}; or let mesh=search look"
