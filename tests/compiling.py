"""The compiler's settings in tests: programs are tiny and run a few times, so most of a test's time is compilation.

Fusions emitted by the compiler's older emitter cost a third of the time that the newer one takes (the training step of
tests/recipe.py: 6 s of CPU time against 18 to 21); jaxlib 0.12 has only the newer one and refuses the flag.
"""

from importlib import metadata

PLAIN = ("--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true")
JAXLIB = tuple(map(int, metadata.version("jaxlib").split(".")[:2]))
FAST = PLAIN
if JAXLIB < (0, 11):
    FAST += ("--xla_cpu_use_fusion_emitters=false",)
