"""pytest's plugin: labs as fixtures, and tests that fail where a fault never happened or the guest's kernel complained.

Every run of pytest imports this module, with skblab or without: everything else is imported with the first lab.
"""

import contextlib
import shlex
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from skblab.image.image import Image
    from skblab.spec import LabSpec
    from skblab.testing import LabInTest, Stems

MARKER = (
    "skblab(..., serve=COMMAND, trace=FILTER, counters=True, allow_unfired=False, allow_unedited=False, "
    "allow_undecided=False, allow_complaints=False): "
    "the lab of this test: any field of skblab.LabSpec; what runs in its guest; what is traced"
)
OWN_IMAGE = {"image", "series", "variant"}  # fields that say which image it is

_labs = pytest.StashKey["list[LabInTest]"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that traces every test."""
    group = parser.getgroup("skblab")
    group.addoption("--skblab-trace", action="store_true", help="trace every packet in the guest of each test")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker."""
    config.addinivalue_line("markers", MARKER)


@pytest.fixture(scope="session")
def skblab_image() -> "Image":
    """Return the image that labs boot, unless the marker says another; override it to choose."""
    from skblab.image.store import find_image  # noqa: PLC0415

    return find_image()


@pytest.fixture(scope="session")
def _skblab_stems() -> "Iterator[Stems]":
    from skblab.testing import Stems  # noqa: PLC0415

    stems = Stems()
    yield stems
    stems.close()


@pytest.fixture
def lab(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, _skblab_stems: "Stems"
) -> "Iterator[LabInTest]":
    """Start a lab for this test, as the marker ``skblab`` says.

    In virtual time it is a branch of one that is booted once for all tests whose markers say the same.
    """
    with contextlib.closing(_skblab_stems.lab(_spec(request))) as lab:
        _begin(lab, request, tmp_path_factory)
        yield lab
        lab.end_test()
    _fail_for(lab.new_complaints_in_words())


@pytest.fixture(scope="module")
def _module_labs() -> "Iterator[dict[LabSpec, LabInTest]]":
    labs: dict[LabSpec, LabInTest] = {}
    yield labs
    for one in labs.values():
        one.close()


@pytest.fixture
def shared_lab(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    _module_labs: "dict[LabSpec, LabInTest]",
) -> "Iterator[LabInTest]":
    """Share a lab between the tests of a module that want the same; a new one after the guest has died."""
    from skblab.testing import LabInTest  # noqa: PLC0415

    spec = _spec(request)
    lab = _module_labs.get(spec)
    if lab is None or not lab.is_alive:
        if lab:
            lab.close()
        lab = _module_labs[spec] = LabInTest(spec)
        lab.__enter__()
    _begin(lab, request, tmp_path_factory)
    yield lab
    lab.end_test()
    _fail_for(lab.new_complaints_in_words())


def _fail_for(wrong: list[str]) -> None:
    if wrong:
        pytest.fail("\n".join(wrong), pytrace=False)


def _spec(request: pytest.FixtureRequest) -> "LabSpec":
    from skblab.testing import settings  # noqa: PLC0415

    wanted = settings(request.node)
    image = None if OWN_IMAGE & wanted.named else request.getfixturevalue("skblab_image")
    return wanted.spec_with(image)


def _begin(lab: "LabInTest", request: pytest.FixtureRequest, factory: pytest.TempPathFactory) -> None:
    from skblab.testing import settings  # noqa: PLC0415

    wanted = settings(request.node)
    always = request.config.getoption("skblab_trace")
    lab.begin_test(wanted, trace="" if always and wanted.trace is None else wanted.trace)
    lab.directory_of = lambda: factory.mktemp("skblab-" + "".join(c if c.isalnum() else "-" for c in request.node.name))
    request.node.stash[_labs].append(lab)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Forget the labs of a run before, which was repeated."""
    item.stash[_labs] = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Fail a test that passed though a rule never fired, the guest's kernel complained, or the guest is gone."""
    result = yield
    _fail_for([one for lab in item.stash[_labs] for one in lab.wrong()])
    return result


def _evidence(lab: "LabInTest") -> list[tuple[str, str]]:
    try:
        return list(lab.evidence())
    except Exception as error:  # noqa: BLE001 - an error in a hook ends the session, and pytest-xdist may not say so
        return [("evidence", f"cannot be read: {error!r}")]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put what the lab knows into the report of a test that failed."""
    report = yield
    labs = item.stash.get(_labs, [])
    if labs and call.when == "call" and report.failed:
        report.sections += [(f"skblab: {title}", text) for lab in labs for title, text in _evidence(lab)]
        command = f"cd {shlex.quote(str(item.config.rootpath))} && pytest {shlex.quote(item.nodeid)} --skblab-trace"
        report.sections.append(("skblab: the same again", command))
    return report
