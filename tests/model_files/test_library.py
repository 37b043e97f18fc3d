"""Models known by name: found, listed, taken in and out, their licences told once."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from homolog.backbones import build
from homolog.cli import main
from homolog.comparing.plan import make_plan
from homolog.config import ConfigError
from homolog.errors import JobError, UnusableInput
from homolog.model_files import keeping, library
from homolog.model_files.encoder import load_encoder, own_backbone
from homolog.model_files.facts import facts_of, licence_line, licence_words
from homolog.model_files.folder import find_model, save_model
from homolog.runs.run import Run
from named_models import keep_apart, put_model


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Path, Path]:
    """Of the library and of what is shipped; tests work in a folder of their own."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return keep_apart(monkeypatch, tmp_path)


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["homolog", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        text = capfd.readouterr()
        return int(stop.value.code or 0), text.out, text.err

    return call


def tiny(folder: Path, **more: Any) -> Path:
    """An encoder that can be loaded."""
    settings = {"channels": [4, 8]}
    card = {"kind": "encoder", "backbone": {"name": "resunet", "config": settings}}
    return save_model(folder, build("resunet", settings).state_dict(), card | more)


def test_a_path_goes_before_a_name_and_ones_own_before_a_shipped_one(
    places: tuple[Path, Path],
) -> None:
    own, shipped = places
    put_model(shipped / "body")
    assert library.located("body") == shipped / "body"
    assert find_model("body") == shipped / "body"
    put_model(own / "body")
    assert find_model("body") == own / "body"
    here = put_model(Path("body"))
    assert find_model("body") == here
    assert library.located(own / "body") == own / "body"


def test_an_encoder_is_loaded_by_its_name(places: tuple[Path, Path]) -> None:
    folder = tiny(places[1] / "body-ct")
    by_name = load_encoder("body-ct")
    assert by_name.folder == folder
    assert by_name.encoder_id == load_encoder(folder).encoder_id
    assert own_backbone("body-ct")["name"] == "resunet"


def test_a_run_in_the_library_is_known_as_the_run(places: tuple[Path, Path]) -> None:
    put_model(places[0] / "liver" / "model")
    (known,) = library.known_models()
    assert (known.name, known.path) == ("liver", places[0] / "liver")
    assert find_model("liver") == places[0] / "liver" / "model"


def test_an_unknown_name_tells_the_known_ones(places: tuple[Path, Path]) -> None:
    with pytest.raises(UnusableInput, match=r"library .* is empty"):
        library.located("body-ct")
    put_model(places[1] / "body-ct")
    put_model(places[0] / "knee")
    with pytest.raises(
        UnusableInput, match=r"known are body-ct and knee\. Did you mean body-ct\?"
    ):
        find_model("body_CT")
    with pytest.raises(UnusableInput) as told:
        library.located("some/where/else")
    assert "known" not in str(told.value)  # a path was meant
    with pytest.raises(UnusableInput) as told:
        library.located("body.pt")
    assert "known" not in str(told.value)


def test_a_name_leads_nowhere_but_into_the_folders(places: tuple[Path, Path]) -> None:
    put_model(places[0].parent / "secret")
    put_model(places[0] / ".body.1-2.part")  # half-written
    for name in ("sub/../../secret", ".body.1-2.part"):
        with pytest.raises(UnusableInput):
            library.located(name)


def test_a_runs_settings_get_the_whole_path(places: tuple[Path, Path]) -> None:
    folder = put_model(places[1] / "body")
    assert library.whole_path("body") == str(folder.resolve())
    assert library.whole_path("nothing") == str(Path("nothing").resolve())
    with pytest.raises(UnusableInput, match="Did you mean body"):
        load_encoder(library.whole_path("bodi"))
    plan = make_plan({}, methods="scratch,ours=body", patients="1")
    assert plan.arm("ours").encoder == str(folder.resolve())


def test_where_the_library_lies(
    places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert library.library_folder() == places[0]
    monkeypatch.delenv("HOMOLOG_MODELS")
    usual = library.library_folder()
    assert usual == Path.home() / "homolog" / "models"
    library.remember_library(tmp_path / "there" / "models")
    assert library.library_folder() == tmp_path / "there" / "models"
    kept = tmp_path / "settings" / "library.json"
    if os.name != "nt":
        assert kept.stat().st_mode & 0o077 == 0
    library.remember_library(usual)
    assert (library.library_folder(), kept.exists()) == (usual, False)


def test_a_damaged_model_is_that_ones_finding(
    places: tuple[Path, Path], shell: Any
) -> None:
    put_model(places[0] / "good", licence="CC BY 4.0")
    put_model(places[0] / "bad")
    (places[0] / "bad" / "model.json").write_text("{")
    (put_model(places[0] / "gone") / "encoder.safetensors").unlink()
    status, text, _ = shell("models", "list", "--json")
    rows = {r["name"]: r for r in json.loads(text.splitlines()[-1])["models"]}
    assert status == 0
    assert "damaged" in rows["bad"]
    assert "missing" in rows["gone"]["damaged"]
    assert rows["good"]["licence"] == "CC BY 4.0"
    assert rows["good"]["where"] == "library"
    with pytest.raises(UnusableInput, match=r"bad/model\.json is damaged"):
        load_encoder("bad")


def test_models_are_listed_by_where_they_lie(
    places: tuple[Path, Path], shell: Any, tmp_path: Path
) -> None:
    put_model(places[1] / "body-ct", licence="CC BY 4.0",
              data=[{"name": "LIDC", "licence": "CC BY 3.0", "scans": 40}])  # fmt: skip
    put_model(places[0] / "knee")
    put_model(tmp_path / "runs" / "a" / "model")
    _, text, _ = shell("models", "list", tmp_path / "runs", "--json")
    *lines, last = text.splitlines()
    names = [(r["name"], r["where"]) for r in json.loads(last)["models"]]
    assert names[:2] == [("body-ct", "shipped"), ("knee", "library")]
    assert names[2] == (str(tmp_path / "runs" / "a"), "folder")
    assert lines[0] == "built in:"
    assert "mae on resunet; 40 steps" in lines[1]
    assert "learnt from LIDC (CC BY 3.0, 40 scans); licence CC BY 4.0" in lines[1]
    assert "learnt from 3 scans (CT)" in lines[3]


def test_a_card_is_shown_in_words(
    places: tuple[Path, Path], shell: Any, tmp_path: Path
) -> None:
    score = {"what": "landmarks", "on": "5 CT pairs", "value": 8.25, "random": 31.0,
             "unit": "mm"}  # fmt: skip
    folder = put_model(places[1] / "body-ct", licence="CC BY-NC 4.0", scores=[score])
    run = Run.create(tmp_path / "here" / "r", "finetune", {"encoder": str(folder)})
    status, text, _ = shell("models", "show", "body-ct", "--json")
    assert status == 0
    assert "Score: landmarks 8.25 mm on 5 CT pairs (random weights 31 mm)" in text
    assert "Licence: CC BY-NC 4.0 (not for commercial use)" in text
    assert f"Used by: {run.folder}" in text
    told = json.loads(text.splitlines()[-1])
    assert told["runs"] == [str(run.folder)]
    assert told["card"]["scores"] == [score]


@pytest.mark.parametrize(
    ("licence", "words"),
    [
        ("CC BY 4.0", "CC BY 4.0"),
        ("cc-by-nc-sa-4.0", "not for commercial"),
        ("Non-commercial research", "not for commercial"),
        ("weights for research use only", "not for commercial"),
        ("unknown: that of the file it was imported from", "ask whoever made it"),
        ("", "not stated (ask whoever made it"),
        (None, "not stated"),
    ],
)
def test_licences_are_said_plainly(licence: str | None, words: str) -> None:
    told = licence_words({"licence": licence})
    assert words in told
    assert ("(" in told) is (licence != "CC BY 4.0")


def test_a_runs_model_is_added_and_deleted(
    places: tuple[Path, Path], shell: Any, tmp_path: Path
) -> None:
    own, shipped = places
    put_model(shipped / "body-ct")
    run = Run.create(tmp_path / "here" / "pre", "pretrain", {"method": "mae"}).folder
    put_model(run / "model")
    assert shell("models", "add", "pre", "--name", "liver")[0] == 0
    assert (own / "liver" / "encoder.safetensors").is_file()
    for name in ("liver", "body-ct", "scratch", "a/b", "..", ""):
        assert shell("models", "add", "pre", "--name", name)[0] == 2
    assert sorted(p.name for p in own.iterdir()) == ["liver"]
    Run.create(tmp_path / "here" / "seg", "finetune", {"encoder": str(own / "liver")})
    status, _, news = shell("models", "delete", "liver")  # nobody to be asked
    assert (status, "--yes" in news, (own / "liver").is_dir()) == (2, True, True)
    status, text, news = shell("models", "delete", "liver", "--yes", "--json")
    assert (status, (own / "liver").exists()) == (0, False)
    assert "1 run began with it" in news
    assert len(json.loads(text.splitlines()[-1])["runs"]) == 1


def test_what_is_not_in_the_library_is_not_deleted(
    places: tuple[Path, Path], shell: Any, tmp_path: Path
) -> None:
    shipped = put_model(places[1] / "body-ct")
    elsewhere = put_model(tmp_path / "elsewhere")
    for what, words in (
        ("body-ct", "comes with Homolog"), (shipped, "comes with Homolog"),
        (elsewhere, "not in the library"), ("nothing", "nor is it a model's name"),
    ):  # fmt: skip
        status, _, news = shell("models", "delete", what, "--yes")
        assert (status, words.lower() in news.lower()) == (2, True), news
    assert shipped.is_dir()
    assert elsewhere.is_dir()


def test_a_question_is_asked_before_a_model_goes(
    places: tuple[Path, Path], shell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    folder = put_model(places[0] / "knee")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("click.confirm", lambda text, **_: asked.append(text))
    status, text, _ = shell("models", "delete", "knee")
    assert (status, "nothing was deleted" in text, folder.is_dir()) == (0, True, True)
    assert str(folder) in asked[0]
    monkeypatch.setattr("click.confirm", lambda *_, **__: True)
    assert shell("models", "delete", folder)[0] == 0
    assert not folder.exists()


def test_a_copy_is_whole_or_not_there(places: tuple[Path, Path]) -> None:
    folder = put_model(Path("made"))
    (folder / "encoder.safetensors").write_bytes(b"other")
    with pytest.raises(UnusableInput, match="checksum"):
        keeping.add_model("made", "knee")
    with pytest.raises(UnusableInput, match="holds no model"):
        keeping.add_model(".", "knee")
    Path("w.pt").write_bytes(b"")
    with pytest.raises(UnusableInput, match="models import"):
        keeping.add_model("w.pt", "knee")
    assert not places[0].exists() or not list(places[0].iterdir())


def test_a_model_that_cannot_be_deleted_is_told(
    places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    put_model(places[0] / "knee")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(keeping.shutil, "rmtree", refuse)
    with pytest.raises(JobError, match="could not be deleted"):
        keeping.delete_model(keeping.deletable("knee"))


def test_a_licence_is_told_at_the_first_use_alone(
    places: tuple[Path, Path], shell: Any, tmp_path: Path
) -> None:
    tiny(places[1] / "body-ct", licence="CC BY-NC 4.0")
    words = "body-ct: licence: CC BY-NC 4.0 (not for commercial use)"
    store = tmp_path / "no-store"
    store.mkdir()
    use = ("probe", store, "--encoder", "body-ct")
    status, _, first = shell(*use)
    assert (status, words in first) == (2, True)  # the store is none
    assert words not in shell(*use)[2]
    tiny(tmp_path / "here" / "run" / "model", licence="mine")
    (tmp_path / "here" / "run" / "run.json").write_text("{}")
    assert "licence: " not in shell("probe", store, "--encoder", "run")[2]
    assert "licence: " not in shell("probe", store, "--encoder", "run/model")[2]


def test_facts_leave_out_what_a_card_does_not_say(tmp_path: Path) -> None:
    folder = put_model(tmp_path / "plain")
    card = json.loads((folder / "model.json").read_text())
    facts = dict(facts_of(card, 10, folder))
    assert "Score" not in facts
    assert "Data" not in facts
    assert facts["Trained on"] == "3 scans (CT)"


def test_a_commands_unknown_name_is_told(places: tuple[Path, Path], shell: Any) -> None:
    put_model(places[1] / "body-ct")
    Path("scan.nii.gz").write_bytes(b"")
    Path("p.csv").write_text("z,y,x\n")
    status, _, news = shell("embed", "scan.nii.gz", "--encoder", "bodyct",
                            "--out", "f")  # fmt: skip
    assert (status, "Did you mean body-ct?" in news) == (2, True), news
    with pytest.raises(ConfigError, match="neither scratch nor carried"):
        make_plan({}, methods="scratch,body", patients="1")


def test_a_licence_fits_a_narrow_list() -> None:
    own = "code Apache-2.0; weights as the licence of the training data"
    for licence in (own, "CC BY 4.0", "CC BY-NC-SA 4.0", None):
        assert len(licence_line({"licence": licence})) <= 36
    assert licence_line({"licence": "MIT"}) == "Licence: MIT"
    told = "Apache-2.0 (weights; the scans learnt from: see data)"
    assert licence_line({"licence": told}) == "Licence: Apache-2.0"
    assert licence_line({}) == "⚠ Licence not stated"
