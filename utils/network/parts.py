"""The parts of a long study: each is saved when it is done, and a second run reuses what stands."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from utils.files import write_whole
from utils.machine import cores
from utils.runs import workers


@dataclass
class Parts:
    """Called with a part's name and what computes it, gives what this returns, as JSON holds it."""

    folder: Path
    key: str  # of all that the results depend on; a part of another one is computed anew
    seconds: dict[str, float] = field(default_factory=dict)  # that each part was waited for

    def __call__(self, name: str, compute: Callable[[], Any]) -> Any:
        told = self.kept(name)
        if not told:
            began = time.perf_counter()
            told = {"key": self.key, "found": compute()}
            told["seconds"] = time.perf_counter() - began
            self.folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps(told, default=np.ndarray.tolist)
            write_whole(self.folder / f"{name}.json", text)
            told, how = json.loads(text), ""
        else:
            how = ", as it stood"
        self.seconds[name] = told["seconds"]
        print(f"{name}: {told['seconds']:.0f} s{how}", flush=True)
        return told["found"]

    def together(self, computes: dict[str, Callable[[], Any]]) -> dict[str, Any]:
        """What parts give that need no model and so are computed beside each other, each in a
        process with a core of its own; a part's seconds are those that it was waited for."""
        missing = [name for name in computes if not self.kept(name)]
        with workers(max(1, min(len(missing), len(cores())))) as pool:
            begun = {name: pool.submit(computes[name]) for name in missing}
            return {
                name: self(name, begun[name].result if name in begun else compute)
                for name, compute in computes.items()
            }

    def kept(self, name: str) -> dict | None:
        """What is saved of a part, if it stands."""
        path = self.folder / f"{name}.json"
        told = json.loads(path.read_text()) if path.is_file() else {}
        return told if told.get("key") == self.key else None
