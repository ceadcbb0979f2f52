"""The commands of the README and of docs/, run in a checkout of their own, at smoke size, in the order of the text."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv
import pytest

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "docs/data.md", "docs/serving.md")
# The same commands, but a market of a few hundred members and a short training.
SMALL = "data.generate.users=400 data.generate.jobs=300 data.generate.impressions=60000"
SHORT = "trainer.max_epochs=1"


def blocks(page: str, language: str) -> list[str]:
    """Code blocks of a page; `sh` blocks are make targets, which CI runs itself."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / page).read_text(), re.M | re.S)


def smoke(command: str) -> str:
    """A README command with the settings that make it small."""
    command = command.split("  #")[0].strip()
    verb = command.split()[1]
    if "refit=" in command or verb in ("eval.py", "export.py", "query.py"):
        return command
    small = "" if "my-configs" in command else f" {SMALL}"
    return command + small + (f" {SHORT}" if verb == "train.py" and "max_epochs" not in command else "")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is tracked, with nothing prepared and nothing trained."""
    folder = tmp_path_factory.mktemp("readme") / "towers"
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in tracked.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def run(command: list[str] | str, where: Path) -> str:
    done = subprocess.run(
        command, cwd=where, shell=isinstance(command, str), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def python(command: str, where: Path) -> str:
    """A command line that begins with `python`, in this environment."""
    return run(command.replace("python ", f"{sys.executable} ", 1), where)


def write_my_data(folder: Path) -> None:
    """The tables that the YAML of docs/data.md describes."""
    folder.mkdir()
    users, jobs = [f"u{i:03d}" for i in range(60)], [f"j{i:02d}" for i in range(40)]
    log = [
        (u, jobs[(i * 7 + k * 3) % 40], f"2024-01-{1 + k:02d}T08:{i:02d}:00+01:00", ("shown", "open", "apply")[k % 3])
        for i, u in enumerate(users)
        for k in range(15)
    ]
    columns = dict(zip(("uid", "jid", "ts", "what"), map(list, zip(*log, strict=True)), strict=True))
    pacsv.write_csv(pa.table(columns), folder / "log.csv")
    pacsv.write_csv(pa.table({"uid": users, "field": ["nursing", "law", "data"] * 20}), folder / "users.csv")
    skills = ["python|sql", "triage", "contracts|", ""] * 10
    table = {"jid": jobs, "title": ["Nurse", "Lawyer"] * 20, "skills": skills, "pay": [50_000.0 + i for i in range(40)]}
    pacsv.write_csv(pa.table(table), folder / "jobs.csv")


@pytest.mark.slow
def test_the_commands_work_in_their_order(checkout: Path) -> None:
    commands = [c for b in blocks("README.md", "bash") for c in b.splitlines() if c.startswith("python ")]
    assert len(commands) >= 8
    for command in commands:
        out = python(smoke(command), checkout)
        if "export.py" in command:
            assert Path(out.strip().splitlines()[-1]).is_dir(), "the bundle's path is printed last"
        if "query.py" in command:
            assert "rank" in out
    refits = list((checkout / "runs/market").glob("*-refit/metrics.json"))
    assert len(refits) == 1
    assert '"refitted": true' in refits[0].read_text()
    for page in ("README.md", "docs/serving.md"):
        for code in blocks(page, "python"):
            latest = (checkout / "runs/market/latest").resolve()
            if not (latest / "bundle").exists():  # the newest run is the refit, which was not exported
                python(f"python export.py run={latest}", checkout)
            run([sys.executable, "-c", code], checkout)


@pytest.mark.slow
def test_a_foreign_config_folder_suffices(checkout: Path) -> None:
    for config in blocks("docs/data.md", "yaml"):
        if name := re.match(r"# (my-configs/\S+)", config):
            path = checkout / name[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(config)
    write_my_data(checkout / "my-data")
    for command in (c for b in blocks("docs/data.md", "bash") for c in b.splitlines()):
        python(smoke(command), checkout)
    for name in ("mine", "clicks"):
        assert (checkout / f"runs/{name}/latest/metrics.json").is_file()


@pytest.mark.parametrize("verb", ["prepare", "train", "eval", "export", "query"])
def test_help_helps(verb: str) -> None:
    out = python(f"python {verb}.py --help", ROOT)
    assert f"python {verb}.py" in out, "an example"
    assert "== Groups" in out


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text()):
        assert target.startswith("http") or ((ROOT / page).parent / target).exists(), target


def test_errors_are_words_and_not_tracebacks() -> None:
    done = subprocess.run(
        [sys.executable, "eval.py", "run=/nowhere"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert "no run at /nowhere" in done.stderr
    assert "Traceback" not in done.stderr
