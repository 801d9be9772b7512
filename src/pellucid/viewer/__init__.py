"""The viewer: a run as a trace, a page that shows it, and a server that makes more of them.

A trace (`pellucid-trace/1`, docs/trace.md) is what the page reads: a header that says what ran, and blocks of numbers.
"""

from pellucid.viewer.container import Trace, TraceBlock
from pellucid.viewer.traces import trace, trace_of

__all__ = ["Trace", "TraceBlock", "trace", "trace_of"]
