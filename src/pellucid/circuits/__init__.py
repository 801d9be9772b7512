"""Circuits: parts of a model that are said to do a task, and how well they do it."""

from pellucid.circuits.ablations import Choices as Choices
from pellucid.circuits.circuit import Circuit as Circuit
from pellucid.circuits.evaluation import CircuitReport as CircuitReport
from pellucid.circuits.evaluation import evaluate as evaluate
from pellucid.circuits.faithfulness import across as across
from pellucid.circuits.faithfulness import curve as curve
from pellucid.names.calls import name_arguments

name_arguments(globals())
