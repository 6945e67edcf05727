"""Print requirements from pyproject.toml, one a line: a dependency group, or the core without some.

python .ci/group.py test
python .ci/group.py --core-without tensorflow jax      # the core, minus tensorflow, plus the extra jax
"""

import re
import sys
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
arguments = sys.argv[1:]
if arguments[:1] == ["--core-without"]:
    left_out, extras = arguments[1], arguments[2:]
    core = project["project"]["dependencies"]
    requirements = [line for line in core if re.split(r"[\[<>=!~; ]", line)[0] != left_out]
    for extra in extras:
        requirements += project["project"]["optional-dependencies"][extra]
else:
    requirements = [line for group in arguments for line in project["dependency-groups"][group]]
print("\n".join(requirements))
