"""What a walk is: a world of three models and a recipe that merge, what is done to it, what is said then, and the way that the
message offers, gone to a finished merge."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file

from tests.terminal import call

CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4, "vocab_size": 8, "num_hidden_layers": 1,
          "tie_word_embeddings": False}  # fmt: skip
SHAPES = {"model.embed_tokens.weight": (8, 4), "model.layers.0.mlp.up_proj.weight": (4, 4), "model.norm.weight": (4,),
          "lm_head.weight": (8, 4)}  # fmt: skip
WORDS = [f"w{number}" for number in range(8)]
FILE, INDEX = "model.safetensors", "model.safetensors.index.json"


def tokenizer(words, added=()):
    marked = [{"id": number, "content": token, "special": True} for token, number in added]
    vocab = {word: number for number, word in enumerate(words)}
    return {"version": "1.0", "added_tokens": marked, "model": {"type": "WordLevel", "vocab": vocab, "unk_token": words[0]}}


class World:
    """The models new, post and old below `root`, and a recipe of them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.recipe: dict[str, Any] = {"base": "new", "deltas": [{"post": "post", "base": "old"}], "output": "out"}
        self.text = ""
        """Of the recipe, where it is not what `recipe` gives."""
        self.options: list[str] = []
        self.environment: dict[str, str] = {}
        self.mergekit: Any = None
        """A config of mergekit, where the recipe is imported from one."""
        for seed, name in enumerate(("new", "post", "old")):
            generator = torch.Generator().manual_seed(seed)
            self.save(name, {key: torch.randn(shape, generator=generator) for key, shape in SHAPES.items()})
            self.write(f"{name}/config.json", CONFIG)
            self.write(f"{name}/tokenizer.json", tokenizer(WORDS))
            shutil.copytree(self.root / name, self.root / f"as it came/{name}")

    def write(self, name: str, content: Any) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = content if isinstance(content, (bytes, str)) else json.dumps(content)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())

    def save(self, name: str, tensors: dict[str, torch.Tensor]) -> None:
        (self.root / name).mkdir(parents=True, exist_ok=True)
        save_file({key: value.contiguous() for key, value in tensors.items()}, self.root / name / FILE, metadata={"format": "pt"})

    def load(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(self.root / name / FILE)

    def add(self, **tensors_of: dict[str, torch.Tensor | None]) -> None:
        """Give tensors to models by name, or take them away (None)."""
        for name, tensors in tensors_of.items():
            self.save(name, {key: value for key, value in {**self.load(name), **tensors}.items() if value is not None})

    def configure(self, name: str, **fields: Any) -> None:
        self.write(f"{name}/config.json", {**json.loads((self.root / name / "config.json").read_text()), **fields})

    def remove(self, name: str) -> None:
        (self.root / name).unlink()

    def get_again(self, name: str = "post") -> None:
        """What "get the files once more from where they came" is."""
        shutil.rmtree(self.root / name, ignore_errors=True)
        shutil.copytree(self.root / "as it came" / name, self.root / name)

    def run(self, command: str) -> tuple[int, str]:
        if self.mergekit is not None:
            self.write("mergekit.yml", self.mergekit if isinstance(self.mergekit, str) else yaml.safe_dump(self.mergekit))
            (self.root / "r.yaml").unlink(missing_ok=True)
            done = call("import", "mergekit.yml", "--output", "out", "-o", "r.yaml", cwd=self.root, **self.environment)
            if done.returncode or command == "import":
                return done.returncode, done.stdout + done.stderr
        else:
            (self.root / "r.yaml").write_text(self.text or yaml.safe_dump(self.recipe, sort_keys=False))
        done = call(command, "r.yaml", *self.options, cwd=self.root, **self.environment)
        return done.returncode, done.stdout + done.stderr


Step = Callable[[World], Any]


@dataclass(frozen=True)
class Walk:
    """One message, and the way that it offers."""

    at: str
    """The module that says it."""
    says: str
    """What it says, as it stands in that module."""
    breaks: Step
    offers: str
    """What of the message names the way; it is in the message word for word."""
    mends: Step
    """That way, gone."""
    commands: tuple[str, ...] = ("check", "plan", "merge")
    """Those that say it."""
    code: int = 3


def walk(found: Walk, root: Path) -> None:
    """Whether the commands refuse with the message, and the way that it offers ends with a merge."""
    world = World(root)
    found.breaks(world)
    for command in found.commands:
        code, said = world.run(command)
        plain = " ".join(said.replace("│", " ").split()) if command == "check" else said
        assert "Traceback" not in said, said
        assert code == found.code, f"{command}: {code}\n{said}"
        if command != "check":  # whose table wraps
            assert found.says in plain, plain
            assert found.offers in plain, plain
    found.mends(world)
    code, said = world.run("merge")
    assert code == 0, said
    folder = str(world.recipe["output"]).partition("/{")[0]
    assert list((world.root / folder).rglob("commit.json")), said
