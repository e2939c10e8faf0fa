"""``vitbench attention``: the right patch is coloured, files are what they are called, and what cannot be is one line."""

from __future__ import annotations

import io
import itertools
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image

from tests.training.data.folders import make_image_folder
from vitbench.analysis.attention import attention_maps
from vitbench.commands.attention import attention
from vitbench.core.errors import DataError, UsageError
from vitbench.experiments.attention import (
    AttentionReport,
    Choice,
    _file_name,
    attention_png,
    draw_attention,
    to_dict,
    to_text,
)
from vitbench.experiments.attention_figures import (
    FADED,
    OPACITY,
    Scale,
    Scene,
    Tile,
    draw_tiles,
    encode_gif,
    paint,
    scale_of,
)
from vitbench.experiments.images import images_of_data
from vitbench.experiments.open_model import DataRequest, ModelRequest, open_trained
from vitbench.models import build_model
from vitbench.models.weights.checkpoints import save_checkpoint
from vitbench.training.augmentation.augment import normalise
from vitbench.training.data.datasets import describe_data, load_images

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A checkpoint of each model, random, with the facts that a training leaves."""
    folder = tmp_path_factory.mktemp("weights")
    found = {}
    for name in ("vit_layer6_32", "cifar_dynamic_vit_pruned", "cifar_lightweight_vit"):
        torch.manual_seed(0)
        facts = {"model": name, "image_size": [32, 32], "num_classes": 10, "recipe": {}}
        path = folder / f"{name}.safetensors"
        save_checkpoint(build_model(name, num_classes=10), path, facts)
        found[name] = str(path)
    return found


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "cat.png"
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def draw(
    weights: dict[str, str],
    model: str = "vit_layer6_32",
    *,
    picture: Path | None = None,
    data: str | None = None,
    index: int = 0,
    out: Path,
    layer: str | None = None,
    head: str | None = None,
    **flags: bool,
) -> AttentionReport:
    choice = Choice.parse(layer, head, **{"rollout": False, "gif": False, "save_maps": False, **flags})
    request = ModelRequest(model=model, weights=weights[model], device="cpu")
    chosen = None if data is None else DataRequest(data=data)
    return draw_attention(request, choice, image=picture, data=chosen, index=index, out=out)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# --- painting


def test_the_patch_with_the_weight_has_the_colour_of_the_weight() -> None:
    values = np.zeros((2, 2))
    values[0, 1] = 0.5
    painted = paint(np.full((4, 8, 3), 0.25), Tile("", values, None, (4, 8)), top=0.5)
    dark, bright = painted[0, 0], painted[0, 4]
    assert (painted[:2, 4:] == bright).all()
    assert (painted[2:] == dark).all()
    assert (painted[:, :4] == dark).all()
    from matplotlib import colormaps

    for colour, level in ((dark, 0.0), (bright, 1.0)):
        expected = OPACITY * np.array(colormaps["inferno"](level)[:3]) + (1 - OPACITY) * 0.25
        np.testing.assert_allclose(colour, expected)


def test_dropped_patches_are_nearly_white_and_uncovered_pixels_gray() -> None:
    values = np.array([[0.1, np.nan]])
    scene = np.zeros((4, 5, 3))
    scene[..., 0] = 1.0  # red
    painted = paint(scene, Tile("", values, np.isnan(values), (4, 4)), top=0.1)
    np.testing.assert_allclose(painted[:, 2:4], FADED + (1 - FADED) * 0.299)
    np.testing.assert_allclose(painted[:, 4], 0.299)
    stayed = paint(scene, Tile("", None, np.isnan(values), (4, 4)), top=1.0)
    assert (stayed[:, :2] == scene[:, :2]).all()
    assert (stayed[:, 2:4] > 0.8).all()


def test_a_grid_may_reach_beyond_the_image() -> None:
    values = np.array([[0.0, 1.0]])
    painted = paint(np.zeros((4, 6, 3)), Tile("", values, None, (4, 8)), top=1.0)  # the model pads 6 px to 8
    assert (painted[:, :4] == painted[0, 0]).all()
    assert (painted[:, 4:] == painted[0, 4]).all()
    assert (painted[0, 0] != painted[0, 4]).any()


def test_the_scale_spans_99_percent_and_says_what_is_beyond() -> None:
    many = [Tile("picture"), Tile("", np.append(np.full(199, 0.01), 0.9))]
    scale = scale_of(many, even=0.001)
    assert (scale.top, scale.largest, scale.clipped) == (0.01, 0.9, True)
    few = scale_of([Tile("", np.array([0.1, 0.2, 0.7, np.nan]))], even=0.25)
    assert (few.top, few.clipped) == (0.7, False)
    assert scale_of(many, even=0.2).top == 0.4  # twice what even attention would give


def test_frames_become_an_endless_gif_of_their_colours() -> None:
    frames = [np.full((4, 6, 3), level, dtype=np.uint8) for level in (0, 90, 200)]
    with Image.open(io.BytesIO(encode_gif(frames))) as gif:
        assert (gif.n_frames, gif.info["loop"], gif.size) == (3, 0, (6, 4))
        for number, frame in enumerate(frames):
            gif.seek(number)
            assert (np.asarray(gif.convert("RGB")) == frame).all()


# --- files


def test_without_options_layers_and_rollout_are_drawn(weights: dict[str, str], picture: Path, tmp_path: Path) -> None:
    report = draw(weights, picture=picture, out=tmp_path / "new" / "folder")
    assert names_in(tmp_path / "new" / "folder") == {"layers.png", "rollout.png"}
    for path in report.written:
        with Image.open(path) as drawn:
            assert drawn.format == "PNG"
            assert len(drawn.convert("RGB").getcolors(1 << 20)) > 50
    assert report.grid == (8, 8)
    assert [one.layer for one in report.layers] == [1, 2, 3, 4, 5, 6]
    assert {(one.heads, one.tokens) for one in report.layers} == {(report.layers[0].heads, 65)}
    for one in report.layers:
        assert 0 < one.entropy_nat <= one.largest_entropy_nat == pytest.approx(np.log(65))
        assert one.on_itself is not None
        assert 0 < one.on_itself < 1


@pytest.mark.parametrize(
    ("options", "files"),
    [
        ({"layer": "3", "head": "all"}, {"layer_03_heads.png"}),
        ({"layer": "6", "head": "2", "rollout": True}, {"layer_06_head_02.png", "rollout.png"}),
        ({"head": "all", "layer": "all"}, {"layers_heads.png"}),
    ],
)
def test_files_say_which_layer_and_head_they_show(
    weights: dict[str, str], picture: Path, tmp_path: Path, options: dict[str, Any], files: set[str]
) -> None:
    out = tmp_path / "out"
    report = draw(weights, picture=picture, out=out, **options)
    assert names_in(out) == files == {path.name for path in report.written}


@pytest.mark.parametrize(
    ("layer", "head", "name", "rollout"),
    [
        (None, None, "layers.png", None),
        ("3", None, "layer_03.png", False),
        ("all", "mean", "layers.png", False),
        (None, "2", "layers_head_02.png", False),
    ],
)
def test_a_choice_names_the_file_and_whether_a_rollout_is_drawn(
    layer: str | None, head: str | None, name: str, rollout: bool | None
) -> None:
    choice = Choice.parse(layer, head, rollout=False, gif=False, save_maps=False)
    assert (_file_name(choice), choice.rollout) == (name, rollout)
    assert Choice.parse(layer, head, rollout=True, gif=False, save_maps=False).rollout is True


def test_the_animation_has_a_frame_a_layer(weights: dict[str, str], picture: Path, tmp_path: Path) -> None:
    draw(weights, picture=picture, out=tmp_path / "out", layer="1", gif=True)
    with Image.open(tmp_path / "out" / "layers.gif") as gif:
        assert gif.n_frames == 6
        frames = []
        for number in range(6):
            gif.seek(number)
            frames.append(np.asarray(gif.convert("RGB")))
    for one, other in itertools.pairwise(frames):
        assert one.shape == other.shape
        assert (one != other).any()


def test_a_model_that_drops_patches_gets_an_image_of_those_that_stay(
    weights: dict[str, str], picture: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    report = draw(weights, "cifar_dynamic_vit_pruned", picture=picture, out=out, gif=True, save_maps=True)
    assert names_in(out) == {"layers.png", "rollout.png", "tokens.png", "layers.gif", "maps.npz"}
    assert [one.patches for one in report.layers] == [64, 64, 57, 45, 31, 18]
    assert [one.tokens for one in report.layers] == [65, 65, 58, 46, 32, 19]
    assert "It drops patches: 64, 57, 45, 31, 18 of 64 attend" in to_text(report)
    with np.load(out / "maps.npz") as saved:
        assert saved["kept_06"].shape == (18,)
        assert saved["layer_06"].shape[1:] == (19, 19)


def test_saved_maps_are_the_weights_for_the_image_as_the_model_sees_it(weights: dict[str, str], tmp_path: Path) -> None:
    report = draw(weights, data="digits", index=7, out=tmp_path / "out", save_maps=True)
    digits = load_images(describe_data("digits"), "test", image_size=(32, 32))
    assert report.picture == f"digits test 7 ({int(digits.labels[7])})"
    torch.manual_seed(0)
    model = build_model("vit_layer6_32", num_classes=10).eval()
    maps = attention_maps(model, normalise(digits.images[7:8], torch.float32))
    with np.load(tmp_path / "out" / "maps.npz") as saved:
        assert sorted(saved) == [f"layer_{number:02}" for number in range(1, 7)]
        for number, one in enumerate(maps, start=1):
            array = saved[f"layer_{number:02}"]
            assert array.dtype == np.float32
            np.testing.assert_allclose(array, one.weights[0], atol=1e-6)


def test_an_image_of_an_image_folder_is_that_of_loading_it_whole(tmp_path: Path) -> None:
    root = make_image_folder(tmp_path / "animals")
    every = load_images(describe_data(str(root)), "test", image_size=(16, 16))
    for index, expected in enumerate(every.images):
        [source], _ = images_of_data(DataRequest(data=str(root)), [index])
        assert torch.equal(source.read((16, 16))[0], expected)
        assert source.name.startswith(f"animals/test/{every.class_names[int(every.labels[index])]}/")
        assert source.truth == every.class_names[int(every.labels[index])]


def test_the_png_of_an_open_model_is_that_of_the_command(weights: dict[str, str], tmp_path: Path) -> None:
    draw(weights, data="digits", index=3, out=tmp_path / "out", layer="all")
    trained = open_trained(ModelRequest(model="vit_layer6_32", weights=weights["vit_layer6_32"], device="cpu"))
    pixels = load_images(describe_data("digits"), "test", image_size=(32, 32)).images[3]
    assert attention_png(trained, pixels) == (tmp_path / "out" / "layers.png").read_bytes()


def test_an_animation_of_a_head_that_some_layers_lack_is_one_line(picture: Path, tmp_path: Path) -> None:
    """PiT's stages have 2, 4 and 8 heads."""
    name = "timm:pit_ti_224"
    path = tmp_path / "pit.safetensors"
    torch.manual_seed(0)
    save_checkpoint(build_model(name), path, {"model": name, "num_classes": 1000, "image_size": [224, 224]})
    options: dict[str, Any] = {"picture": picture, "layer": "12", "head": "8", "out": tmp_path / "out"}
    with pytest.raises(UsageError, match=r"head 8 is not in each layer of timm:pit_ti_224, one of which has 2\. Give"):
        draw({name: str(path)}, name, gif=True, **options)
    assert not (tmp_path / "out").exists()
    draw({name: str(path)}, name, **options)
    assert names_in(tmp_path / "out") == {"layer_12_head_08.png"}


def test_linear_attention_is_labelled_effective(weights: dict[str, str], picture: Path, tmp_path: Path) -> None:
    report = draw(weights, "cifar_lightweight_vit", picture=picture, out=tmp_path / "out", layer="1")
    assert {one.kind for one in report.layers} == {"effective"}
    assert "the weights are effective ones" in to_text(report)


def test_text_and_json_say_the_same(weights: dict[str, str], picture: Path, tmp_path: Path) -> None:
    report = draw(weights, picture=picture, out=tmp_path / "out")
    text, facts = to_text(report), json.loads(json.dumps(to_dict(report)))
    assert "cat.png: 32 px in 8x8 patches" in text
    for row in facts["layers"]:
        assert row["name"] in text
        assert f"{row['entropy_nat']:.2f}" in text
    for path in facts["written"]:
        assert f"Wrote {path}" in text
        assert Path(path).is_file()


# --- what cannot be


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"layer": "7"}, "--layer: vit_layer6_32 has no layer 7, only 6 that attend. Give 1 to 6, or all"),
        ({"layer": "0"}, "Option --layer: '0' is not a number from 1 on. Give one, all"),
        ({"layer": "last"}, "Option --layer: 'last' is not a number"),
        ({"head": "99"}, "Option --head: layer 1 of vit_layer6_32 has no head 99"),
        ({"head": "-1"}, "Option --head: '-1' is not a number from 1 on. Give one, mean or all"),
        ({"picture": None, "data": "digits", "index": 360}, "digits has 360 test images, and none has --index 360"),
        ({"picture": None, "data": "digits", "index": -1}, "Give 0 to 359"),
        ({"picture": None, "data": "digitz"}, "Did you mean 'digits'"),
        ({"picture": Path("nowhere.png")}, "nowhere.png does not exist"),
    ],
)
def test_a_choice_that_does_not_exist_is_one_line_and_writes_nothing(
    weights: dict[str, str], picture: Path, tmp_path: Path, options: dict[str, Any], reason: str
) -> None:
    out = tmp_path / "out"
    with pytest.raises(UsageError) as caught:
        draw(weights, **{"picture": picture, "out": out, **options})
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not out.exists()


def test_a_file_that_is_no_image_is_one_line(weights: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "notes.png"
    path.write_text("no image")
    with pytest.raises(DataError, match=r"notes\.png is not an image"):
        draw(weights, picture=path, out=tmp_path / "out")


def test_a_model_without_attention_is_one_line(picture: Path, tmp_path: Path) -> None:
    path = tmp_path / "resnet.safetensors"
    save_checkpoint(build_model("torchvision:resnet18", image_size=64, num_classes=3), path, {})
    with pytest.raises(
        UsageError, match="No attention to draw for torchvision:resnet18: it has no attention"
    ) as caught:
        draw_attention(
            ModelRequest(model="torchvision:resnet18", weights=str(path), image_size="64", num_classes=3),
            Choice(),
            image=picture,
            out=tmp_path,
        )
    assert "\n" not in str(caught.value)


def test_attention_that_is_not_finite_is_one_line(picture: Path, tmp_path: Path) -> None:
    model = build_model("vit_layer6_32", num_classes=10)
    with torch.no_grad():
        model.get_parameter("blocks.3.norm1.weight").fill_(3e38)  # finite, but its products are not
    path = tmp_path / "big.safetensors"
    save_checkpoint(model, path, {"model": "vit_layer6_32", "image_size": [32, 32], "num_classes": 10})
    with pytest.raises(DataError, match=r"attention of vit_layer6_32 is not finite in blocks\.3.*damaged") as caught:
        draw_attention(
            ModelRequest(model="vit_layer6_32", weights=str(path), device="cpu"), Choice(), image=picture, out=tmp_path
        )
    assert "\n" not in str(caught.value)


def test_the_board_of_many_heads_takes_a_byte_a_colour() -> None:
    """The maps of 24 layers of 16 heads at 518 px took ten gigabytes."""
    scene = np.random.default_rng(0).random((200, 200, 3))
    tiles = [Tile(f"head {number}", values=np.ones((4, 4)), covered=(200, 200)) for number in range(160)]
    tracemalloc.start()
    try:
        draw_tiles(Scene(scene, [], ""), tiles, caption="", scale=Scale(1.0, 1.0), columns=16)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    pixels = 160 * 200 * 200
    assert most < 16 * pixels  # as floats the board and its copies took more than 60 bytes a pixel


def test_a_folder_that_cannot_be_written_is_one_line(weights: dict[str, str], picture: Path) -> None:
    with pytest.raises(UsageError, match=r"Cannot write .*cat\.png"):
        draw(weights, picture=picture, out=picture, layer="1")


# --- the command


def run(*arguments: str) -> Any:
    app = typer.Typer(rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False)
    app.command()(attention)
    return app(args=list(arguments), prog_name="vitbench attention", standalone_mode=False)


def test_the_command_prints_what_it_wrote(
    weights: dict[str, str], picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    chosen = ("vit_layer6_32", str(picture), "--weights", weights["vit_layer6_32"], "--device", "cpu")
    assert run(*chosen, "--out", str(out), "--layer", "2") == 0
    printed = capsys.readouterr().out
    assert f"Wrote {out / 'layer_02.png'}" in printed
    assert len([line for line in printed.splitlines() if "blocks." in line]) == 6
    assert run(*chosen, "--out", str(out), "--layer", "2", "--json") == 0
    assert json.loads(capsys.readouterr().out)["grid"] == [8, 8]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["cat.png", "--data", "digits"], "There is both an image and --data"),
        ([], "There is neither an image nor --data"),
        (["cat.png", "--index", "3"], "--index 3 goes with --data NAME"),
        (["cat.png", "--data-dir", "data"], "--data-dir goes with --data NAME"),
        (["cat.png", "--download"], "--download goes with --data NAME"),
    ],
)
def test_an_image_is_a_file_or_of_a_data_set(words: list[str], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        run("vit_layer6_32", *words, "--weights", "a.pt")


def test_its_module_loads_no_torch() -> None:
    code = "import sys, vitbench.commands.attention; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
