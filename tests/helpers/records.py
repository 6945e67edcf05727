"""Records in stores, changed behind their back."""

import hashlib
import json


def rewrite(folder, change):
    """Change what a record says, with checksums that fit."""
    path = folder / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    names = [line.split()[1] for line in (folder / "SHA256SUMS").read_text().splitlines()]
    sums = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (folder / "SHA256SUMS").write_text("".join(sums))
