"""`launch`: federated rounds on this machine, recorded on a ledger, from one call."""

import math
import os
from collections.abc import Callable
from typing import Any

from flwr.app import ArrayRecord, MetricRecord
from flwr.clientapp import ClientApp

from fedchain._flower import silence
from fedchain.federation import Federation
from fedchain.grid import InProcessGrid, NodeSpec
from fedchain.naming import MAX_ROUNDS, check_count
from fedchain.run import Run
from fedchain_clients import attest
from fedchain_proto.errors import UsageError
from fedchain_proto.statements import MAX_ROUND_DEADLINE_MS, Policy
from fedchain_server import RoundRecord
from fedchain_server.fedavg import resolve_device

MAX_WORKERS = 1024
DEFAULT_MIN_CLIENTS = 3
SLACK_S = 5.0


def launch(
    client_app: ClientApp,
    initial_arrays: ArrayRecord,
    *,
    clients: int,
    rounds: int,
    workdir: str | os.PathLike[str],
    validators: int = 4,
    policy: Policy | None = None,
    device: str = "auto",
    server_evaluate: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    fraction_evaluate: float = 0.0,
    on_round: Callable[[RoundRecord], None] | None = None,
    on_reply: Callable[[int, str], None] | None = None,
    workers: int | None = None,
    seed: int = 0,
) -> Run:
    """Train a model across data owners and leave a history that can be proved.

    Args:
        client_app: The owners' Flower app, unchanged. It finds its share of the data by
            ``context.node_config["partition-id"]`` and ``["num-partitions"]`` and reports
            ``"num-examples"`` (a positive whole number) in its reply's MetricRecord.
        initial_arrays: The model to start from; its names, shapes and dtypes bind every update.
        clients: Number of data owners, 1 to 4096.
        rounds: Number of rounds, 1 to 100,000.
        workdir: Where everything is kept; a folder that is new or empty.
        validators: Number of ledger validators, 1 to 100; all run in this process.
        policy: The run's rules, fixed on the ledger when it opens. Default: an average needs
            3 updates (fewer if there are fewer clients).
        device: Where the average is computed: "auto", "cpu", "cuda" or "cuda:N". The result's
            bits do not depend on it.
        server_evaluate: Called with (round, model) before round 1 (as round 0) and after each
            round; its metrics appear in the round's record.
        fraction_evaluate: Share of the clients, 0 to 1, that evaluate each round's model.
        on_round: Called after each closed round.
        on_reply: Called with (round, participant) as each training reply has been taken in.
        workers: Worker processes that run clients; default: one a processor core. The final
            model does not depend on it.
        seed: Drives the clients' random generators (with round and participant). Equal seeds
            give equal models on one kind of machine; keys are never derived from it.

    Returns:
        The final model, the rounds' records, and `Run.audit`.

    Raises:
        UsageError: An argument is wrong, or the folder is in use, not empty or not writable. If
            no run was opened yet, this or any error leaves nothing behind.
        RuleError: Fewer updates than the policy's ``min_clients`` held in a round. The run is
            closed as aborted and the ledger stays valid.
    """
    silence()  # The callbacks and the returned records say what Flower would log.
    federation = Federation(workdir, clients=clients, validators=validators)
    policy = policy if policy is not None else Policy(min_clients=min(DEFAULT_MIN_CLIENTS, clients))
    _check(client_app, initial_arrays, clients, rounds, policy, fraction_evaluate, workers, seed)
    workers = min(workers or os.cpu_count() or 1, clients)
    # With fewer workers than clients a client waits for its turn. The ledger's deadline allows
    # for the whole queue, so that one client that hangs cannot make those behind it late.
    queue_s = policy.round_timeout_s * math.ceil(clients / workers) + SLACK_S
    deadline_s = min(queue_s, MAX_ROUND_DEADLINE_MS / 1000)
    grid = InProcessGrid(
        client_app,
        nodes=[
            NodeSpec(node_id, name, federation.node_config(name))
            for node_id, name in enumerate(federation.participants, start=1)
        ],
        workers=workers,
        seed=seed,
        timeout_s=policy.round_timeout_s,
        mods=[attest],
    )
    # The grid forks first, while this process has no thread, database or GPU context of ours.
    with grid:
        _check_device(device)
        with federation:
            strategy = federation.strategy(
                policy=policy,
                device=device,
                deadline_s=deadline_s,
                on_round=on_round,
                on_reply=on_reply,
                fraction_evaluate=fraction_evaluate,
                min_train_nodes=1,
                min_evaluate_nodes=1,
                min_available_nodes=1,
            )
            facts: dict[str, Any] = {"clients": clients, "rounds": rounds, "seed": seed}
            federation.workdir.write_status("running", **facts)
            status = "aborted"
            try:
                result = strategy.start(
                    grid,
                    initial_arrays,
                    num_rounds=rounds,
                    timeout=deadline_s,
                    evaluate_fn=server_evaluate,
                )
                status = "completed"
            finally:
                federation.workdir.write_status(status, run=strategy.run_id, **facts)
            return Run(
                run_id=strategy.run_id,
                arrays=result.arrays,
                rounds=tuple(strategy.rounds),
                dir=federation.path,
            )


def _check(
    client_app: object,
    initial_arrays: object,
    clients: int,
    rounds: int,
    policy: object,
    fraction_evaluate: float,
    workers: int | None,
    seed: object,
) -> None:
    """Refuse what cannot work before anything is forked or written."""
    if not isinstance(client_app, ClientApp):
        raise UsageError(f"client_app must be a flwr.clientapp.ClientApp, not {client_app!r:.80}")
    if not isinstance(initial_arrays, ArrayRecord):
        raise UsageError(
            f"initial_arrays must be a flwr.app.ArrayRecord, not {type(initial_arrays).__name__}"
        )
    if not initial_arrays:
        raise UsageError("initial_arrays is empty: there is no model to train")
    check_count("rounds", rounds, MAX_ROUNDS)
    if workers is not None:
        check_count("workers", workers, MAX_WORKERS)
    if not isinstance(policy, Policy):
        raise UsageError(f"policy must be a fedchain.Policy, not {type(policy).__name__}")
    if policy.min_clients > clients:
        raise UsageError(
            f"the policy asks for {policy.min_clients} updates a round, but there are only "
            f"{clients} clients; lower min_clients or raise clients"
        )
    if not 0.0 <= fraction_evaluate <= 1.0:
        raise UsageError(f"fraction_evaluate must be between 0 and 1, not {fraction_evaluate!r}")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise UsageError(f"seed must be a whole number, not {seed!r:.80}")


def _check_device(device: str) -> None:
    """Refuse a device that is not there, in the words of `resolve_device`."""
    try:
        resolve_device(device)
    except ValueError as error:
        raise UsageError(str(error)) from error
