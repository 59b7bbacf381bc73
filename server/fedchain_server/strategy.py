"""`LedgerFedAvg`: Flower's FedAvg whose every round is anchored, exact, and open to audit.

Sampling and configuration are FedAvg's own hooks. What a client says counts only as far as its
owner signed it: weights come from signed statements, never from metrics, and whoever is left out
is left out by name. One bad client costs itself, never the run.
"""

import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result

from fedchain_proto import wire_pb2 as wire
from fedchain_proto.artifact import ArtifactFile, ArtifactFolder
from fedchain_proto.average import MemoryArrays, check_averageable, check_update
from fedchain_proto.digest import Arrays
from fedchain_proto.errors import FedchainError, RuleError, UsageError
from fedchain_proto.keys import SigningKey
from fedchain_proto.statements import MAX_ROUND, Policy
from fedchain_server import metrics
from fedchain_server.anchoring import Ledger, RunAnchor
from fedchain_server.arrays import Model, copy_record
from fedchain_server.fedavg import resolve_device, weighted_mean
from fedchain_server.identity import Identities
from fedchain_server.instruct import Instruction, make_instruction
from fedchain_server.intake import Intake, RoundFacts
from fedchain_server.rounds import RoundRecord
from fedchain_server.settlement import Outcome, Settlement, keep_model, settle

# Past the deadline by the ledger's grace (5 s) and by what validators' clocks may lag (5 s).
OVERDUE_MS = 10_000
MAX_THREADS = 4
MAX_NAMED = 10  # members named in an error
_LOG = logging.getLogger("fedchain.server")

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]


@dataclass(frozen=True)
class _Run:
    """What one call of `start` works with."""

    grid: Grid
    anchor: RunAnchor
    identities: Identities
    pool: Executor
    timeout_s: float
    train_config: ConfigRecord
    evaluate_config: ConfigRecord
    evaluate_fn: EvaluateFn | None
    result: Result


class LedgerFedAvg(FedAvg):
    """FedAvg on a ledger. Use it in a Flower ServerApp in place of FedAvg.

    A subclass may override ``configure_train``, ``configure_evaluate`` and ``aggregate_evaluate``;
    how updates are averaged is fixed by the run's rule, on the ledger.

    Args:
        ledger: The way to the ledger.
        key: The aggregator's signing key.
        name: The aggregator's name on the ledger.
        store: Where models and updates are kept.
        policy: The run's rules.
        device: Where the average is computed: "auto", "cpu", "cuda", "cuda:1". The result's bits
            do not depend on it.
        deadline_s: Seconds from a round's opening until the ledger takes no more updates for it;
            default: the policy's ``round_timeout_s``.
        on_round: Called with each closed round.
        on_reply: Called with (round, participant) as each training reply has been taken in.
        fraction_train: Share of the connected nodes that is asked to train.
        fraction_evaluate: Share of the connected nodes that is asked to evaluate.
        threads: That hash, store and average; default: one a processor core, at most 4. The
            result does not depend on it.
        fedavg: Other arguments of Flower's FedAvg. As long as fewer nodes than the policy's
            ``min_clients`` are connected, a round waits for more.

    Attributes:
        run_id: Of the last `start`, 64 hex digits; empty before a run was opened.
        rounds: Its closed rounds, ascending.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        key: SigningKey,
        name: str = "aggregator",
        store: ArtifactFolder,
        policy: Policy,
        device: str = "auto",
        deadline_s: float | None = None,
        on_round: Callable[[RoundRecord], None] | None = None,
        on_reply: Callable[[int, str], None] | None = None,
        fraction_train: float = 1.0,
        fraction_evaluate: float = 0.0,
        threads: int | None = None,
        **fedavg: Any,
    ) -> None:
        fedavg = {
            "min_train_nodes": policy.min_clients,
            "min_available_nodes": policy.min_clients,
            "min_evaluate_nodes": 1,
            **fedavg,
        }
        super().__init__(
            fraction_train=fraction_train, fraction_evaluate=fraction_evaluate, **fedavg
        )
        self.run_id = ""
        self.rounds: list[RoundRecord] = []
        self._ledger = ledger
        self._key = key
        self._name = name
        self._store = store
        self._policy = policy
        if deadline_s is not None:
            self._policy = replace(policy, round_timeout_s=deadline_s)
        self._device = device
        self._on_round = on_round
        self._on_reply = on_reply
        self._threads = threads or min(os.cpu_count() or 1, MAX_THREADS)

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
    ) -> Result:
        """Run the federated rounds, each of them opened and closed on the ledger.

        Args:
            grid: Flower's way to the nodes.
            initial_arrays: The model to start from; its names, dtypes and shapes bind.
            num_rounds: Number of rounds, at least 1.
            timeout: Seconds to wait for a round's replies; no longer than the round's deadline.
            train_config: Sent to the clients that train.
            evaluate_config: Sent to the clients that evaluate.
            evaluate_fn: Called with (round, model) before round 1 (as round 0) and after each.

        Returns:
            The final model and all metrics, as Flower's own strategies do.

        Raises:
            UsageError: An argument is wrong, or no node can prove who it is.
            RuleError: Fewer updates than the policy's ``min_clients`` held in a round; the run
                was closed as aborted. Or the ledger refuses a statement.
            UnavailableError: The ledger gives no answer.
        """
        model = self._initial_model(initial_arrays, num_rounds, timeout)
        self.summary()
        self.run_id, self.rounds = "", []
        result = Result(arrays=copy_record(model.record))
        with ThreadPoolExecutor(self._threads, "fedchain-intake") as pool:
            anchor = RunAnchor(self._ledger, self._key, self._name, self._policy, model.digest)
            run = _Run(
                grid=grid,
                anchor=anchor,
                identities=_identities(grid, anchor, self._ledger.genesis.chain_id),
                pool=pool,
                timeout_s=min(timeout, self._policy.round_timeout_s),
                train_config=ConfigRecord() if train_config is None else train_config,
                evaluate_config=ConfigRecord() if evaluate_config is None else evaluate_config,
                evaluate_fn=evaluate_fn,
                result=result,
            )
            self._evaluate_here(run, 0, model)
            try:
                self._loop(run, model, num_rounds)
            except BaseException:
                anchor.abort()
                raise
        return result

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Refuse: Flower's hook has no room for signatures, receipts and reasons.

        Raises:
            UsageError: Always.
        """
        raise UsageError("LedgerFedAvg averages signed updates itself, in start()")

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Average the clients' evaluations; replies that do not fit are left out, and logged."""
        weighted: dict[int, tuple[int | float, MetricRecord | None]] = {}
        for reply in replies:
            node = reply.metadata.src_node_id
            own = metrics.only_metrics(reply.content) if reply.has_content() else None
            cap = self._policy.max_examples_per_client
            weight = metrics.claimed_weight(own, self.weighted_by_key, cap)
            if weight is None:
                _LOG.warning("round %d: node %d sent no evaluation to use", server_round, node)
            else:
                weighted[node] = (weight, own)
        # In the order of nodes, not of arrival, so that the mean is the same each time.
        in_order = [weighted[node] for node in sorted(weighted)]
        return metrics.average(in_order, self.weighted_by_key, self.evaluate_metrics_aggr_fn)

    # ------------------------------------------------------------ the loop

    def _loop(self, run: _Run, model: Model, num_rounds: int) -> None:
        """Rounds 1 to `num_rounds`; each is closed in the block that opens the next."""
        keep_model(self._store, model.arrays, model.digest)
        instruction = self._instruct(run, 1, model)
        self.run_id = run.anchor.run.hex()
        run.anchor.open_run(instruction.digest)
        for number in range(1, num_rounds + 1):
            settled = self._train(run, instruction, model)
            # From here on an abort, too, would record what this round came to.
            run.anchor.settle(settled)
            if settled.abandoned:
                closing = run.anchor.end_run(wire.RUN_OUTCOME_ABORTED)
                self._show(settled.record(closing.header.height, {}))
                raise _too_few(settled, self._policy.min_clients)
            model = settled.model
            run.result.arrays = copy_record(model.record)
            figures = self._measure(run, settled)
            if number < num_rounds:
                instruction = self._instruct(run, number + 1, model)
                closing = run.anchor.next_round(instruction.digest)
            else:
                closing = run.anchor.end_run(wire.RUN_OUTCOME_COMPLETED)
            self._show(settled.record(closing.header.height, figures))

    def _instruct(self, run: _Run, number: int, model: Model) -> Instruction:
        """Decide whom to ask what in a round."""
        arrays = copy_record(model.record)  # whatever a subclass does to it, ours stays
        messages = list(self.configure_train(number, arrays, run.train_config, run.grid))
        if not messages:
            raise UsageError(f"round {number}: configure_train asks nobody to train")
        nodes = [message.metadata.dst_node_id for message in messages]
        run.identities.discover(nodes, messages[0].metadata.message_type, run.timeout_s)
        instruction = make_instruction(messages, run.identities.names, model)
        known, least = len(instruction.names), self._policy.min_clients
        if known < least:
            unknown = {n: run.identities.failures[n] for n in nodes if n in run.identities.failures}
            first = next((f" (node {n}: {why})" for n, why in unknown.items()), "")
            raise RuleError(
                f"round {number}: {known} of {len(nodes)} nodes proved a participant's name, the"
                f" run needs {least}{first}; fedchain.attest must be the first of each client's"
                " mods, and each participant admitted",
                code="too-few-clients",
                claim="C10",
            )
        return instruction

    def _train(self, run: _Run, instruction: Instruction, base: Model) -> Settlement:
        """Let the clients train, anchor what they signed, and decide the round."""
        receipt = run.anchor.opened
        opened = receipt.statement
        if not isinstance(opened, wire.RoundOpened):
            raise AssertionError("the anchor holds another statement's receipt")
        cap = self._policy.max_examples_per_client
        facts = RoundFacts(opened, run.anchor.participants, cap, MemoryArrays(base.arrays))
        intake = Intake(facts, instruction.names, self._store, run.pool, self._threads)
        closed = run.anchor.closed.raw if run.anchor.closed is not None else None
        messages = instruction.with_receipts(receipt.raw, closed)
        self._collect(run, intake, messages, opened.round)
        outcomes = _anchor_updates(run.anchor, intake)
        deadline_ms = receipt.header.time_ms + self._policy.round_deadline_ms
        return settle(
            intake,
            outcomes,
            opened=opened,
            asked=frozenset(instruction.names.values()),
            overdue=time.time_ns() // 1_000_000 > deadline_ms + OVERDUE_MS,
            min_clients=self._policy.min_clients,
            base=base,
            store=self._store,
            mean=self._mean,
            pool=run.pool,
            threads=self._threads,
        )

    def _collect(self, run: _Run, intake: Intake, messages: Sequence[Message], number: int) -> None:
        """Send a round's messages and take in each reply as it arrives."""
        replies = run.grid.send_and_receive(messages, timeout=run.timeout_s)
        try:
            for reply in replies:
                sender = intake.receive(reply)
                if sender is not None and self._on_reply is not None:
                    self._on_reply(number, sender)
        finally:
            # A streaming grid may still hold clients at work for a round that is given up.
            close = getattr(replies, "close", None)
            if close is not None:
                close()

    def _mean(self, updates: Sequence[tuple[int, ArtifactFile]]) -> Arrays:
        try:
            return weighted_mean(updates, resolve_device(self._device), self._threads)
        except ValueError as error:
            raise RuleError(f"cannot average: {error}", code="average", claim="C6") from error
        except RuntimeError as error:
            raise FedchainError(f"averaging on {self._device} failed: {error}") from error

    # ------------------------------------------------------------ figures and words

    def _measure(self, run: _Run, settled: Settlement) -> dict[str, float]:
        """Collect a round's figures, for Flower's Result and for its record."""
        number, model = settled.number, settled.model
        train = metrics.average(
            [(c.update.num_examples, c.metrics) for c in settled.included],
            self.weighted_by_key,
            self.train_metrics_aggr_fn,
        )
        if train is not None:
            run.result.train_metrics_clientapp[number] = train
        arrays = copy_record(model.record)
        asked = list(self.configure_evaluate(number, arrays, run.evaluate_config, run.grid))
        evaluated = None
        if asked:
            replies = run.grid.send_and_receive(asked, timeout=run.timeout_s)
            evaluated = self.aggregate_evaluate(number, replies)
        if evaluated is not None:
            run.result.evaluate_metrics_clientapp[number] = evaluated
        here = self._evaluate_here(run, number, model)
        return {
            **metrics.scalars("train/", train),
            **metrics.scalars("evaluate/", evaluated),
            **metrics.scalars("", here),
        }

    def _evaluate_here(self, run: _Run, number: int, model: Model) -> MetricRecord | None:
        if run.evaluate_fn is None:
            return None
        found = run.evaluate_fn(number, copy_record(model.record))
        if found is not None:
            run.result.evaluate_metrics_serverapp[number] = found
        return found

    def _show(self, record: RoundRecord) -> None:
        self.rounds.append(record)
        for out in record.exclusions:
            _LOG.info("round %d without %s: %s", record.number, out.participant, out.words)
        if self._on_round is not None:
            self._on_round(record)

    def _initial_model(self, arrays: ArrayRecord, num_rounds: int, timeout: float) -> Model:
        """Refuse what cannot work before anything is sent or recorded."""
        if type(num_rounds) is not int or not 1 <= num_rounds <= MAX_ROUND:
            raise UsageError(f"num_rounds must be a whole number from 1, not {num_rounds!r}")
        if not timeout > 0:
            raise UsageError(f"timeout must be a number of seconds above 0, not {timeout!r}")
        if type(self).aggregate_train is not LedgerFedAvg.aggregate_train:
            raise UsageError(
                f"{type(self).__name__} overrides aggregate_train, which LedgerFedAvg never calls:"
                " the average is fixed by the run's rule"
            )
        try:
            resolve_device(self._device)
            model = Model.from_record(arrays, threads=self._threads)
            source = MemoryArrays(model.arrays)
            check_averageable(source)
        except (FedchainError, ValueError) as error:
            raise UsageError(f"cannot start: {error}") from error
        if not model.arrays:
            raise UsageError("initial_arrays is empty: there is no model to train")
        if check_update(source, source) is not None:
            raise UsageError("initial_arrays holds NaN or infinity (or a float64 beyond 2**970)")
        return model


def _identities(grid: Grid, anchor: RunAnchor, chain_id: bytes) -> Identities:
    def key_of(name: str) -> bytes | None:
        if name not in anchor.participants:
            anchor.refresh()  # it may have been admitted since
        return anchor.participants.get(name)

    return Identities(grid, chain_id, key_of)


def _anchor_updates(anchor: RunAnchor, intake: Intake) -> dict[str, Outcome]:
    """Bring all signed updates of a round to the ledger, in one batch.

    Their arrays are in the store before: an update in the log that nobody can recompute is a
    finding against the server.
    """
    wait([candidate.arrays for candidate in intake.candidates.values()])
    names = sorted(intake.candidates)
    answers = anchor.submit_updates([intake.candidates[name].signed.raw for name in names])
    outcomes = dict(zip(names, answers, strict=True))
    conflicts = dict(intake.conflicts)
    if any(isinstance(o, RuleError) and o.code == "second-update" for o in answers):
        for receipt in anchor.standing():
            said = receipt.statement
            if not isinstance(said, wire.UpdateSubmitted):
                continue
            own = intake.candidates.get(said.participant)
            if own is not None and own.signed.tx_id != receipt.signed.tx_id:
                conflicts[said.participant] = (own.signed.raw, receipt.signed.raw)
    for name, (first, second) in conflicts.items():
        signer = intake.candidates[name].signed.signatures[0][0]
        anchor.accuse(first, second, signer)
    return outcomes


def _too_few(settled: Settlement, least: int) -> RuleError:
    """Say how many updates held, and what became of the others."""
    out = sorted(settled.excluded.items())
    named = [f"{name} ({excluded.refusal.words})" for name, excluded in out[:MAX_NAMED]]
    if len(out) > MAX_NAMED:
        named.append(f"and {len(out) - MAX_NAMED} more")
    held = len(settled.included)
    return RuleError(
        f"round {settled.number}: {held} of {held + len(out)} updates held, the run needs {least};"
        f" left out: {', '.join(named)}; the run was closed as aborted",
        code="too-few-updates",
        claim="C10",
    )
