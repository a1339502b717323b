#!/usr/bin/env python3
"""Checks that every floor of src/ includes only floors below it and that include/ includes nothing private.

Prints each offence as file:line and exits 1 if there is one.
"""
import pathlib
import re
import sys

FLOORS = ["base", "ops", "attention", "cache", "layers", "hooks", "models", "generate", "train", "dist", "app"]
# The lowest floor that may include a public header.
PUBLIC = {"base.h": "base", "ops.h": "ops", "attention.h": "attention", "layer.h": "layers", "model.h": "models", "fovea.h": "app"}
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"')


def offence(root, path, name):
    """Why `path` may not include `name`, or None."""
    relative = path.relative_to(root).parts
    first, _, rest = name.partition("/")
    if relative[0] == "include":
        return None if first == "fovea" else "a public header may include public headers only"
    floor = relative[1]
    if floor not in FLOORS:
        return f"src/{floor} is no floor of the house"
    if first == "fovea":
        if rest not in PUBLIC:
            return f"fovea/{rest} is unknown to this check"
        allowed = FLOORS.index(PUBLIC[rest]) <= FLOORS.index(floor)
        return None if allowed else f"{floor} is below what fovea/{rest} describes"
    if first not in FLOORS or not rest:
        return "includes are written from src/: \"floor/file.h\""
    return None if FLOORS.index(first) <= FLOORS.index(floor) else f"{first} is above {floor}"


def main():
    root = pathlib.Path(__file__).resolve().parent.parent
    files = [p for top in ("include", "src") for p in sorted((root / top).rglob("*.[ch]"))]
    count = 0
    for path in files:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            match = INCLUDE.match(line)
            reason = match and offence(root, path, match.group(1))
            if reason:
                print(f"{path.relative_to(root)}:{number}: {match.group(1)}: {reason}")
                count += 1
    print(f"include directions: {len(files)} files, {count} offences", file=sys.stderr)
    return 1 if count or not files else 0


if __name__ == "__main__":
    sys.exit(main())
