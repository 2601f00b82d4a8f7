from importlib import metadata

from typer.testing import CliRunner

from codetr.cli import app


def test_the_version_is_that_of_the_distribution():
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.output.split()) == (0, ["codetr-triton", metadata.version("codetr-triton")])
