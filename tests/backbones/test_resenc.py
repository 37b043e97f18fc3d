"""ResEnc: nnU-Net's names and numbers, its plans, and files with every tensor twice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from each import each
from homolog.backbones import build
from homolog.backbones.base import adapt_state
from homolog.config import ConfigError
from homolog.model_files.encoder import fill
from homolog.nn.decoders import foreign_decoder, suited_decoder

PLANS: dict[str, dict[str, Any]] = {
    "cubes": {"channels": (4, 8, 8, 12), "blocks": (1, 2, 1, 3)},
    "thick slices": {
        "channels": (4, 8, 12), "blocks": (1, 2, 2),
        "steps": ((1, 1, 1), (1, 2, 2), (2, 2, 2)),
        "kernels": ((1, 3, 3), (3, 3, 3), (3, 3, 3)),
    },
}  # fmt: skip
LARGE = {"channels": (32, 64, 128, 256, 320, 320), "blocks": (1, 3, 4, 6, 6, 6)}


def published(
    plan: dict[str, Any], decoder: bool = True, image_channels: int = 1
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a ResidualEncoderUNet's file, as nnU-Net saves it."""
    channels, found = plan["channels"], {}
    steps = plan.get("steps") or ((1, 1, 1), *((2, 2, 2),) * (len(channels) - 1))
    kernels = plan.get("kernels") or ((3, 3, 3),) * len(channels)

    def layer(name: str, inside: int, outside: int, kernel: Any, bias: bool) -> None:
        for conv, norm in (("conv", "norm"), ("all_modules.0", "all_modules.1")):
            found[f"{name}.{conv}.weight"] = (outside, inside, *kernel)
            if bias:
                found[f"{name}.{conv}.bias"] = (outside,)
            found[f"{name}.{norm}.weight"] = found[f"{name}.{norm}.bias"] = (outside,)

    layer("encoder.stem.convs.0", image_channels, channels[0], kernels[0], True)
    inside = channels[0]
    for s, outside in enumerate(channels):
        for b in range(plan["blocks"][s]):
            name = f"encoder.stages.{s}.blocks.{b}"
            layer(f"{name}.conv1", inside, outside, kernels[s], True)
            layer(f"{name}.conv2", outside, outside, kernels[s], True)
            if inside != outside:  # after the average, where there is one
                place = int(b == 0 and max(steps[s]) > 1)
                layer(f"{name}.skip.{place}", inside, outside, (1, 1, 1), False)
            inside = outside
    if decoder:  # it holds the encoder once more
        found |= {f"decoder.{name}": shape for name, shape in found.items()}
        for s, stage in enumerate(range(len(channels) - 2, -1, -1)):
            name, fine, coarse = "decoder.transpconvs", *channels[stage : stage + 2]
            found[f"{name}.{s}.weight"] = (coarse, fine, *steps[stage + 1])
            found[f"{name}.{s}.bias"] = (fine,)
            layer(f"decoder.stages.{s}.convs.0", 2 * fine, fine, kernels[stage], True)
            found[f"decoder.seg_layers.{s}.weight"] = (3, fine, 1, 1, 1)
            found[f"decoder.seg_layers.{s}.bias"] = (3,)
    return found


def filled(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Random values, the same under both names of a tensor."""
    torch.manual_seed(1)
    made = {n: torch.randn(s).double() / 4 for n, s in shapes.items()}
    for name in made:
        twin = name.replace(".all_modules.0.", ".conv.")
        made[name] = made[twin.replace(".all_modules.1.", ".norm.")]
    return made


def reference(state: dict[str, Tensor], image: Tensor, plan: Any) -> list[Tensor]:
    """Written from the description: ResNet-D blocks, norm before each rectifier."""
    steps = plan.get("steps") or ((1, 1, 1), *((2, 2, 2),) * 9)

    def layer(name: str, x: Tensor, step: Any = 1) -> Tensor:
        weight = state[f"{name}.conv.weight"]
        reach = [k // 2 for k in weight.shape[2:]]
        x = functional.conv3d(x, weight, state.get(f"{name}.conv.bias"), step, reach)
        norm = state[f"{name}.norm.weight"], state[f"{name}.norm.bias"]
        return functional.instance_norm(x, None, None, *norm)

    def rectified(x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 0.01 * x)

    x, maps = rectified(layer("encoder.stem.convs.0", image)), []
    for s, blocks in enumerate(plan["blocks"]):
        for b in range(blocks):
            name, step = f"encoder.stages.{s}.blocks.{b}", steps[s] if b == 0 else 1
            short = x if step == 1 else functional.avg_pool3d(x, step)
            for place in (0, 1):
                if f"{name}.skip.{place}.conv.weight" in state:
                    short = layer(f"{name}.skip.{place}", short)
            inner = layer(f"{name}.conv2", rectified(layer(f"{name}.conv1", x, step)))
            x = rectified(inner + short)
        maps.append(x)
    return maps


@each("name", PLANS)
def test_features_equal_the_description_on_a_file_of_nnunets_names(name: str) -> None:
    plan = PLANS[name]
    state = filled(published(plan))
    net = build("resenc", plan | {"full_map": True}).double().eval()
    net.load_state_dict(adapt_state(state, net))  # strict: every key, either way
    image = torch.randn(2, 1, 16, 32, 24, dtype=torch.float64)
    with torch.no_grad():
        found, wanted = net(image), reference(state, image, plan)
    for a, b in zip(found, wanted, strict=True):
        assert (a - b).abs().max() < 1e-10
    # without the map of full resolution: the same, but it
    usual = build("resenc", plan).double().eval()
    usual.load_state_dict(adapt_state(state, usual))
    assert usual.strides == net.strides[1:]
    with torch.no_grad():
        assert all(map(torch.equal, usual(image), found[1:]))


@each("name", PLANS)
def test_the_whole_network_equals_the_description(name: str) -> None:
    plan = PLANS[name]
    state = filled(published(plan))
    net = build("resenc", plan | {"full_map": True}).double().eval()
    net.load_state_dict(adapt_state(state, net))
    found = foreign_decoder({f"network_weights.{k}": v for k, v in state.items()}, net)
    assert found is not None
    assert (found.kind, found.classes, found.missing) == ("nnunet", 3, ())
    stages = len(plan["channels"]) - 1
    assert len(found.left_over) == 2 * (stages - 1)  # heads of deep supervision
    ours = suited_decoder(net, 3).double().eval()
    ours.load_state_dict(found.state)  # strict: every key, either way
    image = torch.randn(1, 1, 16, 32, 24, dtype=torch.float64)
    maps = reference(state, image, plan)
    x = maps[-1]
    for s, skip in enumerate(maps[-2::-1]):
        up = state[f"decoder.transpconvs.{s}.weight"]
        bias = state[f"decoder.transpconvs.{s}.bias"]
        x = functional.conv_transpose3d(x, up, bias, up.shape[2:])
        layer = f"decoder.stages.{s}.convs.0"
        weight = state[f"{layer}.conv.weight"]
        reach = [k // 2 for k in weight.shape[2:]]
        x = functional.conv3d(
            torch.cat([x, skip], 1), weight, state[f"{layer}.conv.bias"], 1, reach
        )
        norm = state[f"{layer}.norm.weight"], state[f"{layer}.norm.bias"]
        x = functional.leaky_relu(functional.instance_norm(x, None, None, *norm), 0.01)
    head = f"decoder.seg_layers.{stages - 1}"
    wanted = functional.conv3d(x, state[f"{head}.weight"], state[f"{head}.bias"])
    with torch.no_grad():
        assert (ours(image, net(image)) - wanted).abs().max() < 1e-10
    # a usual network has another decoder, and says that it takes none
    assert foreign_decoder(state, build("resenc", plan)) is None


@each("decoder", [True, False])
def test_a_whole_file_fills_every_tensor_and_leaves_none(decoder: bool) -> None:
    plan = PLANS["cubes"]
    state = {k: v.float() for k, v in filled(published(plan, decoder)).items()}
    for prefix in ("network_weights.", "module.", ""):
        report = fill(
            build("resenc", plan), {prefix + k: v for k, v in state.items()}, "w.pth"
        )
        assert (report.share, report.missing, report.unexpected) == (1.0, (), ())
        assert not report.dropped


def test_a_file_of_the_published_depth_has_these_names() -> None:
    thin = LARGE | {"channels": (1, 2, 3, 4, 5, 5)}
    state = {name: torch.empty(shape) for name, shape in published(thin).items()}
    assert len(state) == 956
    net = build("resenc", {"channels": thin["channels"]})  # other settings as usual
    assert type(net.config)().channels == LARGE["channels"]
    own = {name: value.shape for name, value in net.state_dict().items()}
    assert {name: v.shape for name, v in adapt_state(state, net).items()} == own


def test_second_names_stand_in_where_the_first_are_missing() -> None:
    net = build("resenc", PLANS["cubes"])
    state = filled(published(PLANS["cubes"], decoder=False))
    seconds = {k: v for k, v in state.items() if ".all_modules." in k}
    assert adapt_state(seconds, net).keys() == net.state_dict().keys()


def test_thick_slices_are_halved_and_gathered_later() -> None:
    cls = type(build("resenc", PLANS["cubes"]))
    assert cls.fitted({}, (1.0, 1.0, 1.2), (96, 96, 96)) == {}
    given = cls.fitted({"channels": [4, 8, 16, 16]}, (5.0, 0.8, 0.8), (20, 256, 256))
    assert given["steps"] == [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2]]
    assert given["kernels"] == [[1, 3, 3], [1, 3, 3], [3, 3, 3], [3, 3, 3]]
    net = build("resenc", given | {"blocks": [1, 1, 1, 1]})
    assert net.strides == ((1, 2, 2), (1, 4, 4), (2, 8, 8))
    slices = cls.fitted({}, (8.0, 1.0, 1.0), (1, 256, 256))
    assert all(k[0] == 1 and s[0] == 1 for k, s in zip(*slices.values(), strict=True))
    mine = {"steps": [[1, 1, 1], [2, 2, 2]]}
    assert cls.fitted(mine, (5.0, 0.8, 0.8), (20, 256, 256)) == mine


def test_a_side_that_halves_to_an_odd_number_keeps_its_last_cell() -> None:
    net = build("resenc", PLANS["cubes"]).eval()
    with torch.no_grad():
        maps = net(torch.randn(1, 1, 12, 20, 36))
    assert [tuple(m.shape[2:]) for m in maps] == [(6, 10, 18), (3, 5, 9), (2, 3, 5)]


@each(
    "settings, message",
    [
        ({"channels": ()}, "at least one stage"),
        ({"blocks": (1, 1)}, "blocks must have one entry for each of the 4 stages"),
        ({"steps": ((1, 1, 1),)}, "steps must have one entry"),
        ({"steps": ((1, 1, 1), (2, 2, 3), (2, 2, 2), (2, 2, 2))}, "must be 1 or 2"),
        ({"kernels": ((3, 3, 2),) * 4}, "must be 1, 3 or 5"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build("resenc", PLANS["cubes"] | settings)
