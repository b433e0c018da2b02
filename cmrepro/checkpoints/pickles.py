"""What a Python pickle names, read off its instructions: nothing of it is built or run.

NVIDIA's EDM models are pickles of whole networks with their source code. Opening one would run
that code, so that it is only described here.
"""

import pickletools
from pathlib import Path
from typing import Any, cast

CLASS_NAME = "class_name"  # key under which NVIDIA's pickles keep the name of a network's class


def pickle_contents(path: Path) -> dict[str, Any]:
    """What opening a pickle would import, and what data lies in it.

    Returns:
        protocol; imports, as "module.name"; classes whose source code is inside (in NVIDIA's
        form); num_byte_strings and byte_strings_bytes, how many and how large: arrays lie there.

    Raises:
        ValueError: Cut off, or not a pickle.
    """
    strings: list[str] = []  # pushed or recalled, in order: the last two name an import
    memo: dict[int, str | None] = {}
    imports: set[str] = set()
    classes: dict[str, None] = {}
    protocol, num_byte_strings, size = 0, 0, 0
    pushed: str | None = None
    try:
        with open(path, "rb") as file:
            for opcode, value, _ in pickletools.genops(file):
                name, argument = opcode.name, cast(Any, value)
                if name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
                    memo[len(memo) if name == "MEMOIZE" else int(argument)] = pushed
                    continue
                pushed = None
                if name == "PROTO":
                    protocol = argument
                elif "UNICODE" in name or "STRING" in name:
                    pushed = argument if isinstance(argument, str) else None
                elif name in ("GET", "BINGET", "LONG_BINGET"):
                    pushed = memo.get(int(argument))
                elif name in ("GLOBAL", "INST"):
                    imports.add(argument.replace(" ", ".", 1))
                elif name == "STACK_GLOBAL":
                    imports.add(".".join(strings[-2:]))
                elif isinstance(argument, bytes | bytearray):
                    num_byte_strings, size = num_byte_strings + 1, size + len(argument)
                if pushed is not None:
                    if strings[-1:] == [CLASS_NAME]:
                        classes[pushed] = None
                    strings = [*strings[-1:], pushed]
    except (ValueError, TypeError, MemoryError, OverflowError) as error:
        raise ValueError(
            f"{path} is cut off, or no pickle ({' '.join(str(error).split())}); download it again"
        ) from error
    return {
        "protocol": protocol,
        "imports": sorted(imports),
        "classes": list(classes),
        "num_byte_strings": num_byte_strings,
        "byte_strings_bytes": size,
    }
