"""What is imported without torch's compiler asks it when it must; what needs more of it gets the compiler itself."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import sys
import torch
from ssl_dist.eager import compiler_put_off

def there():
    return any(name.startswith("torch._dynamo") for name in sys.modules)

with compiler_put_off():
    import torchvision
    import inspect
    inspect.getmodule(torchvision)
assert not there()
boxes = torch.tensor([[0.0, 0.0, 0.0, 4.0, 4.0]])
assert torchvision.ops.roi_align(torch.rand(1, 3, 8, 8), boxes, 2).shape == (1, 3, 2, 2)
if {asks}:
    asked = sys.modules["torchvision.ops.roi_align"].is_compile_supported("cpu")
    from torch._dynamo.utils import is_compile_supported
    assert asked == is_compile_supported("cpu")
else:
    with compiler_put_off():
        import torch._dynamo.config
        from torch._dynamo.utils import counters
        from torch._dynamo.decorators import disable
        import torch._dynamo
        assert callable(torch._dynamo.disable)
    assert torch._dynamo.__file__
assert there()
with compiler_put_off():
    pass
assert torch.compiler.disable(lambda: 3)() == 3
"""


@pytest.mark.parametrize("asks", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_compiler_is_imported_when_it_is_asked_or_when_more_of_it_is_taken(*, asks: bool) -> None:
    subprocess.run([sys.executable, "-c", CODE.replace("{asks}", str(asks))], check=True)
