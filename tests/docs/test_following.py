"""The pages that need no cloud, followed command by command."""

import json
import re

from tests.docs.pages import DOCS


def test_the_laptop_page(reader):
    outputs = reader.follow(DOCS / "laptop.md")
    assert "nothing to do" in "".join(outputs)
    assert sorted(path.name for path in reader.folder.iterdir()) == ["half", "llama.yaml", "merge.yaml", "merged", "models"]
    assert outputs[-1].splitlines()[0] == "166,775,808 bytes to read, 55,604,224 to write"


def test_the_nightly_page(reader):
    output = "".join(reader.follow(DOCS / "nightly.md"))
    folders = sorted(path.name for path in (reader.folder / "nightly").iterdir() if not path.name.startswith("."))
    assert len(folders) == 3
    assert folders[-1] == "latest.json"
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d-[0-9a-f]{12}", name) for name in folders[:-1])
    assert '"state": "nothing to do"' in output
    pointer = json.loads((reader.folder / "nightly/latest.json").read_text())
    assert output.endswith(f"{pointer['output']}\n")
    shown = next(text for text in (DOCS / "nightly.md").read_text().split("```") if text.startswith("json"))
    assert json.loads(shown.removeprefix("json")).keys() == pointer.keys()
