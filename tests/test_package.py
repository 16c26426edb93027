"""What the package promises to pip, to colcon and to its readers."""

import ast
import hashlib
import os
import re
import runpy
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import setuptools

import policytrim_ros
from policytrim_ros.share import share

ROOT = Path(__file__).resolve().parents[1]
SKIPPED_FOLDERS = {".git", ".venv", "build", "install", "log", "runs", "data", "__pycache__", ".pytest_cache", ".hypothesis"}
EMAIL = r"[-a-zA-Z0-9_%+]+(\.[-a-zA-Z0-9_%+]+)*@[-a-zA-Z0-9%]+(\.[-a-zA-Z0-9%]+)*\.[a-zA-Z]{2,}"  # as colcon's parser wants it


@pytest.fixture
def setup(monkeypatch):
    """The arguments of setup() in setup.py."""
    given = {}
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(setuptools, "setup", lambda **arguments: given.update(arguments))
    runpy.run_path("setup.py")
    return given


@pytest.fixture(scope="module")
def manifest():
    return ElementTree.parse(ROOT / "package.xml").getroot()


def files():
    """Every file of the project's tree."""
    for folder, names, contents in os.walk(ROOT):
        names[:] = [name for name in names if name not in SKIPPED_FOLDERS and not name.endswith(".egg-info")]
        yield from (Path(folder) / name for name in contents)


def imports(path):
    """Dotted names that a Python file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


# ---- package.xml and setup.py -----------------------------------------------------------------------------------------


def test_package_xml_is_a_valid_format_3_manifest(manifest):
    assert manifest.tag == "package" and manifest.get("format") == "3"
    assert re.fullmatch(r"[a-z][a-z0-9_]*", manifest.findtext("name"))
    assert re.fullmatch(r"\d+\.\d+\.\d+", manifest.findtext("version"))
    assert manifest.findtext("description").strip()
    assert re.fullmatch(EMAIL, manifest.find("maintainer").get("email"))
    assert (ROOT / manifest.find("license").get("file")).is_file()
    assert manifest.findtext("export/build_type") == "ament_python"


def test_package_xml_and_setup_py_say_the_same(manifest, setup):
    assert manifest.findtext("name") == setup["name"]
    assert manifest.findtext("version") == setup["version"] == policytrim_ros.__version__
    assert manifest.findtext("license") == setup["license"] == "Apache-2.0"
    assert manifest.findtext("maintainer") == setup["maintainer"]
    assert manifest.find("maintainer").get("email") == setup["maintainer_email"]


def test_every_ros_package_that_is_imported_is_declared_for_rosdep_and_for_pip(manifest, setup):
    declared = {node.text for node in manifest.findall("exec_depend")}
    wheels = {re.match(r"ros-([a-z-]+)", name)[1].replace("-", "_") for name in setup["extras_require"]["ros"]}
    wheels |= {"rcl_interfaces", "builtin_interfaces"}  # dependencies of rclpy itself
    used = {
        name.split(".")[0]
        for folder in ("policytrim_ros", "sim_bridge")
        for path in (ROOT / folder).rglob("*.py")
        for name in imports(path)
    }
    used = {name for name in used if name == "rclpy" or name.endswith(("_msgs", "_srvs", "_interfaces"))}
    assert used <= declared and used <= wheels


def test_a_ros_workspace_installs_no_wheel_over_its_own_ros(setup):
    assert not [name for name in setup["install_requires"] if name.startswith(("ros-", "torch", "mani"))]


def test_every_pinned_requirement_says_why():
    lines = (ROOT / "setup.py").read_text().splitlines()
    pinned = [line for line in lines if re.match(r'^ {8}"[a-zA-Z_-]+(\[\w+\])?(==|>=)', line)]
    assert len(pinned) > 15 and all("#" in line for line in pinned)


def test_every_entry_point_names_a_function_that_exists(setup):
    for group in setup["entry_points"].values():
        for entry in group:
            module, _, name = entry.split("=")[1].strip().partition(":")
            tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text())
            assert name in {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}, entry


def test_python_can_finds_the_emulated_bus():
    import can

    assert "piper_hub" in can.VALID_INTERFACES


def test_launch_config_urdf_and_models_are_installed_with_their_folders(setup):
    installed = {f"{target}/{Path(file).name}" for target, contents in setup["data_files"] for file in contents}
    assert "share/ament_index/resource_index/packages/policytrim_ros" in installed
    for top in ("launch", "config", "urdf", "models"):
        for path in (ROOT / top).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert f"share/policytrim_ros/{path.relative_to(ROOT)}" in installed


def test_a_missing_shared_file_is_named():
    assert share("config", "controller.yaml").is_file()
    with pytest.raises(FileNotFoundError, match="config/nothing.yaml is not installed"):
        share("config", "nothing.yaml")


def test_colcon_finds_executables_where_ros2_looks():
    assert "install_scripts=$base/lib/policytrim_ros" in (ROOT / "setup.cfg").read_text()


# ---- the rooms of docs/architecture.md --------------------------------------------------------------------------------

ALLOWED = {  # room: the other rooms it may import
    "core": set(),
    "policies": {"core", "files", "children"},
    "training": {"core", "policies", "files", "children"},
    "arm": {"core"},
    "cameras": {"core"},
    "trials": {"core", "files", "children"},
    "console": {"core", "files"},
    "nodes": {"core", "policies", "training", "arm", "cameras", "trials", "console", "share", "files", "children", "awake"},
}


@pytest.mark.parametrize("room", ALLOWED)
def test_imports_point_down(room):
    for path in (ROOT / "policytrim_ros" / room).rglob("*.py"):
        for name in imports(path):
            parts = name.split(".")
            if parts[0] == "policytrim_ros" and len(parts) > 1:
                assert parts[1] in ALLOWED[room] | {room, "__version__"}, f"{path.relative_to(ROOT)} imports {name}"


def test_core_needs_numpy_alone():
    for path in (ROOT / "policytrim_ros" / "core").rglob("*.py"):
        for name in imports(path):
            top = name.split(".")[0]
            assert top in sys.stdlib_module_names | {"numpy", "policytrim_ros"}, f"{path.relative_to(ROOT)} imports {name}"


def test_ros_is_imported_by_nodes_and_the_starter_alone():
    for room in ("core", "policies", "training", "arm", "cameras", "trials", "console"):
        for path in (ROOT / "policytrim_ros" / room).rglob("*.py"):
            assert "rclpy" not in {name.split(".")[0] for name in imports(path)}, path


def test_the_product_never_imports_the_simulation():
    for path in (ROOT / "policytrim_ros").rglob("*.py"):
        assert "sim_bridge" not in {name.split(".")[0] for name in imports(path)}, path


def test_the_simulation_imports_only_core_training_and_the_shared_parts_of_a_node():
    shared = ("core", "training", "nodes.messages", "nodes.parameters", "nodes.process", "share")
    for path in (ROOT / "sim_bridge").rglob("*.py"):
        for name in imports(path):
            if name.startswith("policytrim_ros."):
                assert name.removeprefix("policytrim_ros.").startswith(shared), f"{path.relative_to(ROOT)} imports {name}"


# ---- the tree ---------------------------------------------------------------------------------------------------------


def test_no_file_names_the_host_of_a_package_registry():
    hosts = [
        ".".join(parts)
        for parts in (("pypi", "org"), ("pythonhosted", "org"), ("deb", "debian", "org"), ("archive", "ubuntu", "com"))
    ]
    for path in files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        assert not [host for host in hosts if host in text], path


def test_no_file_of_the_tree_is_larger_than_12_mb():
    assert [str(path) for path in files() if path.stat().st_size > 12e6] == []


@pytest.mark.parametrize("script", ["scripts/bootstrap", ".ci/run"])
def test_scripts_are_executable_and_parse(script):
    assert os.access(ROOT / script, os.X_OK)
    subprocess.run(["bash", "-n", str(ROOT / script)], check=True)


# ---- make -------------------------------------------------------------------------------------------------------------


def bootstrap(tree, tmp_path, **environment):
    """Runs the bootstrap of a copy of the tree with commands from tmp_path/bin in front of the system's."""
    return subprocess.run(
        [tree / "scripts" / "bootstrap"],
        env={"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin:/sbin", "HOME": str(tmp_path), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def tree(tmp_path):
    """A copy of what the bootstrap reads, and a folder for replaced commands."""
    copy = tmp_path / "tree"
    (copy / "scripts").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    shutil.copy(ROOT / "setup.py", copy)
    shutil.copy(ROOT / "scripts" / "bootstrap", copy / "scripts")
    return copy


def replace(tmp_path, name, body):
    path = tmp_path / "bin" / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def test_setup_refuses_a_machine_without_a_supported_python(tree, tmp_path):
    for name in ("python3.11", "python3.12", "python3.10", "python3"):
        replace(tmp_path, name, "exit 1")
    result = bootstrap(tree, tmp_path)
    assert result.returncode == 1 and "no Python 3.10 to 3.12 found" in result.stderr


def test_setup_without_root_says_which_command_root_has_to_run(tree, tmp_path):
    replace(tmp_path, "ldconfig", "exit 0")  # no library at all
    replace(tmp_path, "id", "echo 1000")
    replace(tmp_path, "sudo", "exit 1")
    result = bootstrap(tree, tmp_path, POLICYTRIM_PYTHON=sys.executable)
    assert result.returncode == 1
    assert "lacks libvulkan1" in result.stderr and f"sudo {tree}/scripts/bootstrap --system" in result.stderr


def test_a_failed_setup_is_not_remembered_as_done(tree, tmp_path):
    replace(tmp_path, "ldconfig", "printf '%s\\n' libvulkan.so.1 libusb-1.0.so.0 libudev.so.1 libGL.so.1 libgthread-2.0.so.0")
    replace(tmp_path, "dpkg-query", "echo 25.0.7-2")
    (tree / ".venv" / "bin").mkdir(parents=True)
    for name, body in (("pip", "exit 0"), ("python", 'case "$*" in *pip*) exit 1;; esac; exit 0')):
        (tree / ".venv" / "bin" / name).write_text(f"#!/bin/sh\n{body}\n")
        (tree / ".venv" / "bin" / name).chmod(0o755)
    result = bootstrap(tree, tmp_path, POLICYTRIM_PYTHON=sys.executable)
    assert result.returncode == 1 and "torch could not be installed" in result.stderr
    assert not (tree / ".venv" / ".ready").exists()


def test_a_finished_setup_returns_at_once_until_the_requirements_change(tree, tmp_path):
    (tree / ".venv" / "bin").mkdir(parents=True)
    (tree / ".venv" / "bin" / "policytrim").write_text("#!/bin/sh\n")
    (tree / ".venv" / "bin" / "policytrim").chmod(0o755)
    content = b"".join((tree / name).read_bytes() for name in ("setup.py", "scripts/bootstrap"))
    (tree / ".venv" / ".ready").write_text(hashlib.sha256(content).hexdigest())
    for name in ("python3.11", "python3.12", "python3.10", "python3"):
        replace(tmp_path, name, "exit 1")
    assert bootstrap(tree, tmp_path).returncode == 0
    with open(tree / "setup.py", "a") as file:
        file.write("# another requirement\n")
    assert bootstrap(tree, tmp_path).returncode == 1
