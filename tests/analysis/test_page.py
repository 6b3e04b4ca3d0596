"""The page: whole in itself, small however large the model, harmless whatever tensors are called, and alive in a browser."""

import json
import re
import shutil
import subprocess
from functools import partial

import numpy as np
import pytest
import torch

from paramdelta_dist import api
from paramdelta_dist.analysis.distance_curve import spread
from paramdelta_dist.analysis.page.delta_page import render_page
from paramdelta_dist.analysis.statistics import MeasuredDelta, Statistics, SurveyedModels
from paramdelta_dist.kernels.measure import Measured, Vectors
from paramdelta_dist.planning.plan import TensorPlan
from tests import oracle
from tests.models import ARCHITECTURES, make_models, recipe, save_model

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(not CHROMIUM, reason="no Chromium here; on Debian: apt-get install chromium")
RUN = {"bytes_read": 10**9, "seconds": 3.0, "workers": 2, "engine": "local"}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    old, post, new = make_models(root, ARCHITECTURES["llama"])
    config = json.loads((old / "config.json").read_text())
    third = {name: (tensor.float() * 1.001).bfloat16() for name, tensor in oracle.load(post).items()}
    return new, post, old, save_model(root / "third", third, config=config)


@pytest.fixture(scope="module")
def page(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    new, post, old, third = (str(model) for model in models)
    deltas = ({"post": post, "base": old, "weight": 0.5}, {"post": third, "base": old, "weight": 0.5})
    api.analyze(recipe(new, None, None, folder / "out", deltas=deltas), str(folder / "report"))
    return folder / "report" / "report.html"


def test_the_page_asks_for_nothing_from_outside(page):
    html = page.read_text()
    assert not re.search(r"""(src|href)\s*=|url\(|@import|https?://""", html)
    assert "default-src 'none'" in html


def test_every_picture_has_a_title_and_its_figures_in_a_table(page):
    html = page.read_text()
    assert html.count("<svg") == html.count('role="img"') == len(re.findall(r'<svg[^>]*><title id="t\d+">[^<]+</title>', html))
    assert html.count("<table") >= 6
    for part in ("Where the deltas are", "go the same way", "How large", "scaled merge", "largest changes", "What the figures are"):
        assert part in html


def tensor(name, elements):
    return TensorPlan(name, True, "BF16", (elements,), elements, 0, 2 * elements, 0, ())


def statistics(names, deltas, *, layers_of=1000):
    """Invented figures of tensors with these names."""
    generator = np.random.default_rng(1)
    vectors = Vectors(deltas + 2, (*((1 + d, deltas + 1) for d in range(deltas)), (0, deltas + 1)), deltas, (0, deltas + 1))
    measured = Measured.nothing(vectors, (len(names),))
    for place, (one, other) in enumerate(vectors.dots):
        measured.sums[:, place] = generator.uniform(1, 2, len(names)) * (1 if one == other else 0.2)
    measured.sums[:, len(vectors.dots) :] = generator.uniform(1, 9, (len(names), vectors.sums - len(vectors.dots)))
    measured.histograms[:, :, 30:40] = generator.integers(1, 900, (len(names), deltas, 10))
    measured.signs[:] = (5, 9)
    tensors = [tensor(name, 10_000) for name in names]
    subject = SurveyedModels("/new", tuple(MeasuredDelta(f"post {d}", f"/post{d}", "/old", 0.5) for d in range(deltas)), ("/old",), vectors)
    return Statistics(subject, tensors, measured)


def test_a_hundred_thousand_tensors_and_eight_deltas_make_a_small_page():
    names = [f"model.layers.{n // 1650}.mlp.experts.{n % 1650 // 3}.{'wvu'[n % 3]}_proj.weight" for n in range(98_900)]
    names += [f"model.layers.{layer}.{part}.weight" for layer in range(61) for part in ("self_attn.q_proj", "input_layernorm", "mlp.gate")]
    found = render_page(statistics(names, 8), RUN)
    assert len(found) < 5 << 20
    assert b"200 of 792,664" in found


@pytest.mark.parametrize("deltas", [1, 2])
def test_names_of_a_stranger_are_text_and_nothing_else(deltas):
    evil = [
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>.weight',
        "a\x1b[31m\u202eb",
        "model.layers.3.mlp.&lt;.weight",
        "\udcff",
    ]
    html = render_page(statistics(evil, deltas), RUN).decode()
    assert "<script>alert" not in html
    assert "<img" not in html
    assert not any(sign in html for sign in ("\x1b", "\u202e"))


def test_the_curves_are_the_distances_of_merges_that_were_made(tmp_path, models):
    new, post, old, third = (oracle.load(model) for model in models)
    weights = (0.7, -0.3)
    flat = partial(_flat, names=list(new))
    vectors = Vectors(4, ((1, 2), (3, 2), (0, 2)), 2, (0, 2))
    subject = SurveyedModels(
        "/new", (MeasuredDelta("post", "/post", "/old", 0.7), MeasuredDelta("third", "/third", "/old", -0.3)), ("/old",), vectors
    )
    found = [flat(post) - flat(old), flat(third) - flat(old), flat(new) - flat(old)]
    measured = Measured.nothing(vectors, (1,))
    for place, (one, other) in enumerate(vectors.dots):
        measured.sums[0, place] = found[one] @ found[other]
    curves = spread(Statistics(subject, [tensor("all", len(found[0]))], measured))
    assert [curve.label for curve in curves] == ["new", "old", "post", "third"]
    for alpha in (0.0, 0.5, 1.0, 1.7):
        made = flat(new) + alpha * (weights[0] * found[0] + weights[1] * found[1])
        for curve, model in zip(curves, (new, old, post, third), strict=True):
            assert float(curve.at(alpha)) == pytest.approx(np.linalg.norm(made - flat(model)), rel=1e-9, abs=1e-9)
    for curve in curves:
        assert curve.at(curve.nearest) <= curve.at(curve.nearest + 0.01)


def _flat(model, names):
    return torch.cat([model[name].double().ravel() for name in names]).numpy()


def browse(page, *flags, width=500, height=900):
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={width},{height}"]
    command += [f"--user-data-dir={page.parent / 'profile'}", "--enable-logging=stderr", *flags, f"file://{page}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout


@needs_browser
def test_a_column_sorts_when_its_head_is_pressed_and_nothing_is_wider_than_a_phone(page, tmp_path):
    press = """<script>
      const table = document.querySelector("table.sortable");
      const heads = [...table.querySelectorAll("thead button")];
      const values = (column) => [...table.tBodies[0].rows].map((row) => row.cells[column].dataset.v ?? row.cells[column].textContent);
      const at = heads.findIndex((head) => head.textContent === "max |δ|");
      heads[at].click(); const down = values(at).map(Number);
      heads[at].click(); const up = values(at).map(Number);
      heads[0].click(); const words = values(0);
      document.title = JSON.stringify({down, up, words, width: document.documentElement.scrollWidth, window: innerWidth});
    </script>"""
    copy = tmp_path / "page.html"
    copy.write_text(page.read_text() + press)
    title = re.search(r"<title>(\{.*?\})</title>", browse(copy, "--dump-dom"))[1]
    told = json.loads(title)
    assert told["down"] == sorted(told["down"], reverse=True)
    assert told["up"] == sorted(told["up"])
    assert told["words"][0] > told["words"][-1]
    assert told["width"] <= told["window"]


@needs_browser
def test_the_page_is_drawn_light_dark_and_on_paper(page, tmp_path):
    sizes = {}
    for name, flags in {"light": (), "dark": ("--blink-settings=preferredColorScheme=0",)}.items():
        browse(page, f"--screenshot={tmp_path / name}.png", *flags, width=1200, height=3000)
        sizes[name] = (tmp_path / f"{name}.png").read_bytes()
    assert all(len(data) > 50_000 for data in sizes.values())
    assert sizes["light"] != sizes["dark"]
    browse(page, f"--print-to-pdf={tmp_path / 'page.pdf'}")
    paper = (tmp_path / "page.pdf").read_bytes()
    assert paper.startswith(b"%PDF")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", paper)) <= 12
