"""Models between Flower's ArrayRecord, numpy and their digest."""

from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import Array, ArrayRecord

from fedchain_proto.digest import Arrays, model_digest
from fedchain_proto.errors import FedchainError
from fedchain_proto.npy import STYPE, read_arrays, write_npy


@dataclass(frozen=True)
class Model:
    """A model in the form that Flower sends and in the form that is averaged, and its name.

    Attributes:
        record: As sent; shared, never changed here.
        arrays: Views of `record`'s bytes, read-only, any shapes.
        digest: Model digest, 32 bytes.
    """

    record: ArrayRecord
    arrays: Arrays
    digest: bytes

    @classmethod
    def from_record(cls, record: ArrayRecord, *, threads: int = 1) -> "Model":
        """Take a Flower record as a model.

        Raises:
            EvidenceError: A tensor in it is not a plain numpy array, or not what it says.
            RuleError: A name or dtype has no place in a model.
        """
        arrays = read_arrays(record)
        # Its own record: whoever holds the one that came may still change that one.
        return cls(copy_record(record), arrays, model_digest(arrays, threads=threads))

    @classmethod
    def from_arrays(cls, arrays: Arrays, digest: bytes) -> "Model":
        """Make the record that carries `arrays` to clients; they are copied once.

        Args:
            arrays: The model.
            digest: Its model digest, which the caller has computed.
        """
        record = to_record(arrays)
        return cls(record, read_arrays(record), digest)

    def is_in(self, record: ArrayRecord) -> bool:
        """Whether a record carries exactly this model; cheap if it shares our bytes."""
        if record.keys() == self.record.keys() and all(
            mine.data is theirs.data
            and (mine.dtype, mine.shape, mine.stype) == (theirs.dtype, theirs.shape, theirs.stype)
            for mine, theirs in ((self.record[name], record[name]) for name in record)
        ):
            return True
        try:
            return model_digest(read_arrays(record)) == self.digest
        except FedchainError:
            return False


def to_record(arrays: Arrays) -> ArrayRecord:
    """Write numpy arrays as a Flower record, names in the order given."""
    return _record(
        {
            name: Array(
                dtype=str(array.dtype), shape=array.shape, stype=STYPE, data=write_npy(array)
            )
            for name, array in arrays.items()
        }
    )


def copy_record(record: ArrayRecord) -> ArrayRecord:
    """Copy a record, not its bytes: what is done to the copy leaves the original as it is."""
    return _record(dict(record))


def _record(arrays: Mapping[str, Array]) -> ArrayRecord:
    record = ArrayRecord()
    for name, array in arrays.items():
        record[name] = Array(
            dtype=array.dtype, shape=tuple(array.shape), stype=array.stype, data=array.data
        )
    return record
