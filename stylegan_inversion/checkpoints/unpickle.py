"""A pickle machine that calls nothing of the file's: bytes -> plain values and the stand-ins of `stand_ins.py`.

Python's own unpickler imports what a file names and calls it. This one knows the opcodes that PyTorch and Python write
in protocols 2 to 5, keeps values on a stack, and looks names up in a closed table. Anything else ends it. Its memory
is bounded by the file and by `Budget`: an index is a key of a dict, a length is checked against what is there, long
bytes are views. Standard library only: the reading process starts without PyTorch.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stylegan_inversion.checkpoints.allowed import Table, build, check_key, unknown_name
from stylegan_inversion.checkpoints.stand_ins import Global, LongText, Storage
from stylegan_inversion.errors import CheckpointError

MAX_OPERATIONS = 1_000_000  # a released checkpoint takes about 100 000
_SHORT = 65_536  # longer texts are not decoded, longer bytes not copied
_STOP = ord(".")
_MALFORMED = (IndexError, KeyError, TypeError, ValueError, OverflowError, AttributeError, struct.error)
_REFUSED = {"i": "INST", "o": "OBJ", "\x82": "EXT1", "\x83": "EXT2", "\x84": "EXT4", "\x92": "NEWOBJ_EX"}
_REFUSED |= {"P": "PERSID", "\x97": "NEXT_BUFFER", "\x98": "READONLY_BUFFER"}


@dataclass
class Budget:
    """How many operations are left, counted over all the pickles of a file."""

    operations: int = MAX_OPERATIONS


def _weight(value: Any) -> int:
    """What a stand-in may copy of an argument, in operations: a small pickle can pass a long list many times."""
    return len(value) // (64 if isinstance(value, str) else 1) if isinstance(value, (str, list, tuple, dict)) else 0


class Unpickler:
    """Reads one pickle after another from a buffer.

    Args:
        data: The file.
        known: The names it may use.
        budget: Shared by all the pickles of a file.
        position: Where the pickle begins; afterwards, where it ended.
        storage: Gives the storage of a persistent id. `None`: there are none.
    """

    def __init__(
        self,
        data: memoryview,
        *,
        known: Table,
        budget: Budget,
        position: int = 0,
        storage: Callable[[Any], Storage] | None = None,
    ) -> None:
        self.data = data
        self.known = known
        self.budget = budget
        self.position = position
        self.storage = storage
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def load(self) -> Any:
        """Read one pickle.

        Raises:
            CheckpointError: If it is damaged, too long, or asks for what is not known.
        """
        self.stack, self.marks, self.memo = [], [], {}
        try:
            while (opcode := self.take(1)[0]) != _STOP:
                self.spend(1)
                step = _STEPS.get(opcode)
                if step is None:
                    name = _REFUSED.get(chr(opcode), f"0x{opcode:02x}")
                    raise CheckpointError(
                        f"Its pickle uses the operation {name} at byte {self.position - 1}, which PyTorch does not "
                        "write; the file is damaged or made to do harm: fetch it again from its authors."
                    )
                step(self)
            return self.stack.pop()
        except _MALFORMED as e:
            raise CheckpointError(
                f"Its pickle is damaged near byte {self.position} ({type(e).__name__}: {str(e)[:100]}). Fetch it again."
            ) from e

    def spend(self, operations: int) -> None:
        """Count operations."""
        self.budget.operations -= operations
        if self.budget.operations < 0:
            raise CheckpointError(
                f"Its pickle takes more than {MAX_OPERATIONS} operations, many times what a checkpoint takes."
            )

    def take(self, size: int) -> memoryview:
        """The next bytes, as a view."""
        end = self.position + size
        if end > len(self.data):
            raise CheckpointError(
                f"It is cut short: {size} bytes are announced at byte {self.position} of {len(self.data)}. "
                "Fetch it again; the download did not finish."
            )
        self.position, start = end, self.position
        return self.data[start:end]

    def number(self, code: str) -> int:
        """The next little-endian number of a struct code."""
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def push(self, value: Any) -> None:
        """Put a value on the stack."""
        self.stack.append(value)

    def push_bytes(self, size: int) -> None:
        """Push bytes: a copy of short ones, a view of long ones."""
        view = self.take(size)
        self.push(bytes(view) if size <= _SHORT else view)

    def push_text(self, size: int) -> None:
        """Push a text; a long one stays as it is."""
        view = self.take(size)
        self.push(str(view, "utf-8", "surrogatepass") if size <= _SHORT else LongText(view))

    def push_long(self, size: int) -> None:
        """Push an integer of at most 16 bytes."""
        if size > 16:
            raise CheckpointError(f"Its pickle holds an integer of {size} bytes; a checkpoint has none so long.")
        self.push(int.from_bytes(self.take(size), "little", signed=True))

    def mark(self) -> None:
        """Begin a new stack."""
        self.marks.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        """Back to the stack before the mark; what came since."""
        items, self.stack = self.stack, self.marks.pop()
        return items

    def push_tuple(self, size: int) -> None:
        """Push the last values as a tuple."""
        items = [self.stack.pop() for _ in range(size)]
        self.push(tuple(reversed(items)))

    def top(self, kind: type) -> Any:
        """The value on top of the stack, which must be of a kind."""
        if not isinstance(self.stack[-1], kind):
            raise CheckpointError(
                f"Its pickle fills a {type(self.stack[-1]).__name__} as if it were a {kind.__name__}."
            )
        return self.stack[-1]

    def extend(self, items: list[Any]) -> None:
        """Add to the list on top."""
        self.top(list).extend(items)

    def set_items(self, items: list[Any]) -> None:
        """Add keys and values to the dict on top."""
        if len(items) % 2:
            raise CheckpointError("Its pickle has a key without a value: the file is damaged.")
        self.top(dict).update(zip(map(check_key, items[::2]), items[1::2]))

    def line(self) -> str:
        """The next line, of at most 300 bytes."""
        view = self.data[self.position : self.position + 300]
        end = bytes(view).find(b"\n")
        if end < 0:
            raise CheckpointError(f"Its pickle has a name without an end at byte {self.position}: the file is damaged.")
        return str(self.take(end + 1)[:-1], "utf-8")

    def name(self, module: Any, name: Any) -> None:
        """Push what the table has for a name."""
        if type(module) is not str or type(name) is not str:
            raise CheckpointError("Its pickle asks for a name that is no text.")
        if (module, name) not in self.known:
            raise unknown_name(module, name)
        self.push(self.known[module, name])

    def call(self) -> None:
        """Arrange arguments as our stand-in of a name does."""
        arguments, target = self.stack.pop(), self.stack.pop()
        if not isinstance(target, Global) or target.build is None or type(arguments) is not tuple:
            shown = target.name if isinstance(target, Global) else type(target).__name__
            raise CheckpointError(f"Its pickle calls `{shown}`, which is not a function; nothing of it was run.")
        self.spend(sum(map(_weight, arguments)))
        self.push(target.build(*arguments))

    def build(self) -> None:
        """Give the object on top its state."""
        state = self.stack.pop()
        self.spend(_weight(state))
        build(self.stack[-1], state)

    def persistent(self) -> None:
        """Push the storage of a persistent id."""
        if self.storage is None:
            raise CheckpointError("Its pickle refers to data outside of itself, which is not there.")
        self.push(self.storage(self.stack.pop()))

    def remember(self, index: int) -> None:
        """Keep the value on top under an index."""
        self.memo[index] = self.stack[-1]

    def protocol(self) -> None:
        """Check the protocol."""
        if (protocol := self.number("B")) not in range(2, 6):
            raise CheckpointError(f"Its pickle is of protocol {protocol}; 2 to 5 are read.")


_STEPS: dict[int, Callable[[Unpickler], Any]] = {
    0x80: Unpickler.protocol,
    0x95: lambda u: u.take(8),  # FRAME: a hint of a length
    ord("("): Unpickler.mark,
    ord("0"): lambda u: u.stack.pop(),
    ord("1"): Unpickler.pop_mark,
    ord("N"): lambda u: u.push(None),
    0x88: lambda u: u.push(True),
    0x89: lambda u: u.push(False),
    ord("J"): lambda u: u.push(u.number("i")),
    ord("K"): lambda u: u.push(u.number("B")),
    ord("M"): lambda u: u.push(u.number("H")),
    0x8A: lambda u: u.push_long(u.number("B")),
    0x8B: lambda u: u.push_long(u.number("I")),
    ord("G"): lambda u: u.push(struct.unpack(">d", u.take(8))[0]),
    ord("U"): lambda u: u.push_text(u.number("B")),  # texts of Python 2
    ord("T"): lambda u: u.push_text(u.number("I")),
    0x8C: lambda u: u.push_text(u.number("B")),
    ord("X"): lambda u: u.push_text(u.number("I")),
    0x8D: lambda u: u.push_text(u.number("Q")),
    ord("C"): lambda u: u.push_bytes(u.number("B")),
    ord("B"): lambda u: u.push_bytes(u.number("I")),
    0x8E: lambda u: u.push_bytes(u.number("Q")),
    0x96: lambda u: u.push_bytes(u.number("Q")),
    ord(")"): lambda u: u.push(()),
    ord("t"): lambda u: u.push(tuple(u.pop_mark())),
    0x85: lambda u: u.push_tuple(1),
    0x86: lambda u: u.push_tuple(2),
    0x87: lambda u: u.push_tuple(3),
    ord("]"): lambda u: u.push([]),
    ord("a"): lambda u: u.extend([u.stack.pop()]),
    ord("e"): lambda u: u.extend(u.pop_mark()),
    ord("}"): lambda u: u.push({}),
    ord("s"): lambda u: u.set_items([u.stack.pop(), u.stack.pop()][::-1]),
    ord("u"): lambda u: u.set_items(u.pop_mark()),
    0x8F: lambda u: u.push([]),  # a set, kept as a list
    0x90: lambda u: u.extend(u.pop_mark()),
    0x91: lambda u: u.push(u.pop_mark()),
    ord("c"): lambda u: u.name(u.line(), u.line()),
    0x93: lambda u: u.name(*[u.stack.pop(), u.stack.pop()][::-1]),
    ord("R"): Unpickler.call,
    0x81: Unpickler.call,
    ord("b"): Unpickler.build,
    ord("Q"): Unpickler.persistent,
    ord("q"): lambda u: u.remember(u.number("B")),
    ord("r"): lambda u: u.remember(u.number("I")),
    0x94: lambda u: u.remember(len(u.memo)),
    ord("h"): lambda u: u.push(u.memo[u.number("B")]),
    ord("j"): lambda u: u.push(u.memo[u.number("I")]),
}
