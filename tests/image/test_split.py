"""An address in code that the compiler has split off a function has that function's name."""

from skblab.host import process
from skblab.image.image import Image
from skblab.image.split import name_at


def test_code_that_was_split_off(every_image: Image) -> None:
    listed = process.run(["nm", "--format=posix", every_image.kernel], timeout_s=60).stdout
    parts = [line.split() for line in listed.splitlines() if ".part.0 t " in line]
    assert len(parts) > 50
    for name, _, address, size in parts:
        first = int(address, 16)
        for inside in (first, first + int(size, 16) - 1):
            assert every_image.functions.at(inside) is None
            assert name_at(every_image, inside) == name.removesuffix(".part.0")
    function = every_image.functions.lookup("icmp_rcv")
    assert function
    assert name_at(every_image, function.address + 1) == "icmp_rcv"
    assert name_at(every_image, 1) == ""
