"""The project's NOTICE: whose texts the bundled model was trained on, and whose libraries the viewer holds.

CC-BY asks for the author's name, the title, the licence, and a word on what was changed.
"""

import csv
from collections import defaultdict
from pathlib import Path

from corpus import SOURCES

COLLECTIONS = {
    "global-asp+asp-source": (
        "African Storybook (https://www.africanstorybook.org), English texts of "
        "https://github.com/global-asp/asp-source"
    ),
    "global-asp+pb-source": (
        "Pratham Books' StoryWeaver (https://storyweaver.org.in), English texts of "
        "https://github.com/global-asp/pb-source"
    ),
}

# The licences of what is built into the viewer, which change with its libraries and not with the training.
VIEWER = Path(__file__).parents[1] / "viewer" / "NOTICE"

HEAD = """\
NOTICE

The model in src/pellucid/bundled was trained on the texts below, and the validation texts in
tests/bundled/data are small parts of them. Near-duplicates were removed and the text was reduced
to ASCII; nothing else was changed. Neither the authors nor the collections endorse this project.

SOURCES

"""

STORYBOOKS = """
STORYBOOKS

The storybooks are licensed under Creative Commons Attribution, 3.0
(https://creativecommons.org/licenses/by/3.0/) or 4.0
(https://creativecommons.org/licenses/by/4.0/). Authors, each with titles:
"""


def notice_text(attribution: Path) -> str:
    """The text of NOTICE.

    Args:
        attribution: The storybooks' credits, a TSV of repo, file, title, author and license.
    """
    sources = "".join(f"* {s.name}: {s.origin}. Licence: {s.licence}.\n" for s in SOURCES)
    works: dict[str, dict[str, list[str]]] = {name: defaultdict(list) for name in COLLECTIONS}
    with attribution.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            works[row["repo"]][row["author"].strip()].append(row["title"].strip())
    parts = [HEAD, sources.replace(", credits in NOTICE", ", credits below"), STORYBOOKS]
    for name, by_author in works.items():
        parts.append(f"\nFrom {COLLECTIONS[name]}\n\n")
        parts.extend(f"{author}: {'; '.join(by_author[author])}.\n" for author in sorted(by_author))
    return "".join([*parts, "\n", VIEWER.read_text(encoding="utf-8")])
