"""What verbs do, a module each; `pellucid.cli` imports the one that is needed, once its options are read.

torch comes first. While it is imported Ctrl-C ends the process, whereas an exception would be lost in it, or abort.
"""

import torch  # noqa: F401  # pyright: ignore[reportUnusedImport]
