"""The README's Python runs as it stands (on a smaller grid)."""

import re
from pathlib import Path

import pytest


@pytest.mark.default_model
def test_readme_code_runs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = (Path(__file__).parent.parent / "README.md").read_text()
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    assert code.count("range(30)") == 1
    code = code.replace("n=8", "n=2").replace("range(30)", "range(23, 24)")
    monkeypatch.chdir(tmp_path)  # it writes activations and a dictionary
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "9[ John]" in printed
    assert "18 rows in 1 waves" in printed
    assert names["run"]["L20H0.pattern@-1"].shape == (1, 14)  # pyright: ignore
    assert len(names["effects"]) == 9  # pyright: ignore
