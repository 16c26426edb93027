"""`policytrim`: the command line. A command is a class: docstring = summary, ``add_arguments`` = options, ``run`` = work.

Only the chosen command builds its options and imports what it needs, so that `policytrim hold` does not wait for torch.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time

from policytrim_ros.arguments import add_arguments, from_text, texts, values_of
from policytrim_ros.core.config import ConfigError
from policytrim_ros.core.contract import is_remote
from policytrim_ros.graph import SETTINGS, TASKS, LaunchArguments, clock_file, graph, on_clock, runtime_dir, session_name


class Up:
    """start the whole system: simulated, or with sim:=false the robot

    examples:
      policytrim up                                          simulation; then `policytrim go` in another terminal
      policytrim up task:=flip_mug checkpoint:=demonstrator:hesitant trials:=5
      policytrim up sim:=false can_port:=can0 cameras:=front=123456789012,wrist=210987654321 speed_scale:=0.3

    Ctrl-C ends everything, last process first; the arm is left held. Exit code 0 after a clean end, 1 after a refused
    start or the death of a process, 130 when trials were interrupted.
    """

    def add_arguments(self, parser) -> None:
        add_arguments(parser, LaunchArguments)

    def run(self, options) -> int:
        from policytrim_ros.up import up

        return up(from_text(LaunchArguments, texts(options, LaunchArguments)))


class Wait:
    """wait until processes of the running system are ready (used by the launch file)

    example: policytrim wait controller camera
    """

    def add_arguments(self, parser) -> None:
        parser.add_argument(
            "names",
            nargs="+",
            metavar="process or name:=value",
            help="processes to wait for, and the launch arguments of the system",
        )

    def run(self, options) -> int:
        from policytrim_ros.up import wait

        given = dict(word.split(":=", 1) for word in options.names if ":=" in word)
        names = [word for word in options.names if ":=" not in word]
        arguments = from_text(LaunchArguments, given)
        processes = graph(arguments)
        unknown = set(names) - {process.name for process in processes}
        if unknown:
            raise ConfigError(f"no process '{sorted(unknown)[0]}' in this system; it has {', '.join(p.name for p in processes)}")
        late = wait(processes, names, arguments.namespace)
        if late:
            print(f"wait: {', '.join(late)} did not become ready", file=sys.stderr)
        return 1 if late else 0


class Restart:
    """start again what has died in the running system, a node or the simulated world; the arm stays held until `policytrim go`

    inference begins with the last checkpoint that had proved itself, not with one that was being tried when it died.
    """

    def add_arguments(self, parser) -> None:
        add_session(parser)

    def run(self, options) -> int:
        from policytrim_ros.up import restart

        session = session_name(LaunchArguments(session=options.session))
        print(f"asked process {restart(session)}, which says what it starts; then: policytrim go")
        return 0


class Demo:
    """watch the simulated arm do all three tasks, a few trials of each; ends with one table

    The full output of all processes goes to <out>/log.txt.
    """

    def add_arguments(self, parser) -> None:
        parser.add_argument(
            "--trials", type=int, default=2, choices=range(1, 1001), metavar="N", help="trials of each task (default 2)"
        )
        parser.add_argument(
            "--tasks", nargs="+", default=list(TASKS), choices=TASKS, metavar="TASK", help=f"of {', '.join(TASKS)} (default: all)"
        )
        parser.add_argument(
            "--setting", default="standard", choices=SETTINGS, help="whether the target stays or is moved (default: it stays)"
        )
        parser.add_argument("--seed", type=int, default=1000, help="seed of each task's first scene (default 1000)")
        parser.add_argument("--out", help="directory of the records (default: runs/demo-<time>)")

    def run(self, options) -> int:
        from policytrim_ros.demo import demo

        return demo(
            options.tasks, options.setting, options.trials, options.seed, options.out or time.strftime("runs/demo-%Y%m%d-%H%M%S")
        )


class Trial:
    """run trials against the running system and print their table

    example: policytrim trial task:=tape_box trials:=10 out:=runs/tape label:=mine
    """

    def add_arguments(self, parser) -> None:
        from policytrim_ros.nodes.trial import TrialConfig

        add_arguments(parser, TrialConfig)
        add_namespace(parser)

    def run(self, options) -> int:
        from policytrim_ros.nodes.trial import TrialConfig, main

        values = values_of(TrialConfig, texts(options, TrialConfig))
        words = [word for name, value in values.items() for word in ("-p", f"{name}:={json.dumps(value)}")]
        namespace = options.namespace.strip("/")
        return main(["trial", "--ros-args", *(["-r", f"__ns:=/{namespace}"] if namespace else []), *words])


class Trials:
    """sessions of trials: carry one out, list, lock, report, export, import into a dataset

    examples:
      policytrim up plan:=plan.yaml record:=true out:=runs/mine       a whole session in simulation, by script
      policytrim trials run plan.yaml --out runs/mine                 the same against a system that is up
      policytrim trials list --out runs/mine
      policytrim trials lock --out runs/mine                          from now on nothing can be added; unblinds the newest session
      policytrim trials report --out runs/mine                        report.html and report.md beside trials.db
      policytrim trials export trials.parquet --out runs/mine         or .csv, .json
      policytrim trials combine --out runs/robot --simulated runs/sim        never pooled: prediction-powered inference
      policytrim trials import --out runs/mine --dataset data/mine    labelled recordings become a LeRobotDataset
    """

    def add_arguments(self, parser) -> None:
        actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
        added = {}
        for name, said in (
            ("run", "carry out a plan against the running simulated system, without an operator; the same command resumes"),
            ("list", "all sessions, a line each, and the table of one of them, never of several together"),
            ("lock", "end a session: nothing can be added or relabelled, and its arms may be seen"),
            ("report", "one self-contained page of a locked session: claims, figures, failures, commands"),
            ("export", "one row a trial, as CSV, Parquet or JSON"),
            ("combine", "real trials with the help of simulated ones of the same scenes (prediction-powered inference)"),
            ("import", "labelled recordings of trials as a LeRobotDataset, for fine-tuning"),
        ):
            added[name] = actions.add_parser(name, help=said, description=said)
            added[name].add_argument("--out", default="runs", help="directory of trials.db (default: runs)")
        for name in ("list", "lock", "report", "export", "combine", "import"):
            default = "all" if name == "export" else "the newest"
            added[name].add_argument("--session", default="", help=f"which session (default: {default})")
        added["run"].add_argument("plan", help="YAML file of the session, docs/trials.md")
        added["run"].add_argument(
            "--recorded", action="store_true", help="a recorder runs; a recording that is not whole is an alarm"
        )
        add_namespace(added["run"])
        added["lock"].add_argument("--reason", default="", help="why now, when the session is not complete")
        added["report"].add_argument("--to", default="", help="directory of the report (default: <out>/<session>)")
        added["export"].add_argument("file", help="ends with .csv, .parquet or .json")
        added["combine"].add_argument("--simulated", required=True, help="directory of the simulated trials")
        added["combine"].add_argument(
            "--simulated-session", nargs="+", default=[], metavar="NAME", help="which sessions of it (default: the newest)"
        )
        added["import"].add_argument(
            "--dataset", required=True, help="directory of the LeRobotDataset; added to when it is there"
        )
        added["import"].add_argument("--keep-failures", action="store_true", help="failed trials, too")

    def run(self, options) -> int:
        from policytrim_ros import sessions

        try:
            return getattr(sessions, f"{options.action}_trials")(options)
        except sessions.REFUSALS as error:
            raise CommandError(str(error)) from error


class Console:
    """the operator's console in a terminal: the same as the web page of `policytrim up console:=true`, also over SSH

    example: policytrim console --who Li

    Keys: g go, s success, f failure, x invalid, u undo, space or Esc hold, ? help.
    """

    def add_arguments(self, parser) -> None:
        parser.add_argument("--url", default="http://127.0.0.1:8765", help="address of the console (default: this machine's)")
        parser.add_argument("--who", default="", help="your name in the record (default: the user's)")
        parser.add_argument("--language", default="", choices=("", "en", "zh"), help="en or zh (default: the system's)")

    def run(self, options) -> int:
        from policytrim_ros.console.terminal import main
        from policytrim_ros.core.listening import TOKEN

        return main(options.url, os.environ.get(TOKEN, ""), options.who, options.language)


class Order:
    """Base of the operator's orders: one service, and whether the policy runs afterwards."""

    service = ""
    policy: bool | None = None  # what inference/run is told after the order was accepted; None: nothing

    def add_arguments(self, parser) -> None:
        add_namespace(parser)

    def run(self, options) -> int:
        from policytrim_ros.orders import order

        return order(self.service, self.policy, options.namespace)


class Go(Order):
    """let the policy move the arm: enable the motors, then start inference"""

    service, policy = "controller/go", True


class Hold(Order):
    """decelerate and hold now, and stop inference; the motors stay on"""

    service, policy = "controller/hold", False


class Home(Order):
    """move slowly to the ready pose and hold there"""

    service = "controller/home"


class Park(Order):
    """move slowly to the folded pose, in which the arm rests on itself"""

    service = "controller/park"


class ClearFault(Order):
    """after the cause of a fault was removed: from fault to holding; moves nothing"""

    service = "controller/clear_fault"


class DampedStop(Order):
    """the arm sinks with damping and must be recovered by hand; `hold` is nearly always what you want

    Support the arm first. Recovery cuts its power: see docs/can.md.
    """

    service, policy = "controller/damped_stop", False

    def add_arguments(self, parser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--yes", action="store_true", required=True, help="the arm is supported and its workspace is free")


class Swap:
    """exchange the policy of the running system, also while it moves the arm

    example: policytrim swap models/mine

    The checkpoint is tried in a process of its own, loaded beside the one that speaks, and speaks from the next chunk boundary on.
    One that does not fit, or predicts other actions than when it was made, is refused, and the old one stays. Paths are seen from
    where the system was started. `policytrim roll-back` brings the one before back at once.
    """

    def add_arguments(self, parser) -> None:
        parser.add_argument("checkpoint", help="directory of the checkpoint, or ws://host:port of a policy server")
        parser.add_argument("--timeout", type=float, default=120.0, metavar="S", help="how long it may take (120)")
        add_namespace(parser)

    def run(self, options) -> int:
        from policytrim_ros.orders import swap

        where = options.checkpoint if is_remote(options.checkpoint) else os.path.abspath(options.checkpoint)
        return swap(where, options.timeout, options.namespace)


class RollBack(Order):
    """the policy before the last swap speaks again, from the next chunk on"""

    service = "inference/roll_back"


class Trainer:
    """trim a policy beside the running system (trainer:=true): start or resume, stop, status

    examples:
      policytrim trainer start name:=mine checkpoint:=models/piper-pi0-tiny tasks:=tape_box minutes:=60
      policytrim trainer status
      policytrim trainer stop                       saves the state; start resumes exactly

    What start sets stays set until the node ends. Paths are seen from where the system was started.
    """

    def add_arguments(self, parser) -> None:
        from policytrim_ros.training.background import TrainerConfig

        parser.add_argument("action", choices=("start", "stop", "status"), help="what to do")
        add_arguments(parser, TrainerConfig)
        add_namespace(parser)

    def run(self, options) -> int:
        from policytrim_ros import orders
        from policytrim_ros.training.background import TrainerConfig

        given = texts(options, TrainerConfig)
        from_text(TrainerConfig, given)  # refused before ROS is loaded
        if options.action == "status":
            return orders.training_status(options.namespace)
        return orders.train(options.action == "start", values_of(TrainerConfig, given), options.namespace)


class Fault:
    """make the emulated arm or an emulated camera fail, to see what the system does

    examples:
      policytrim fault arm mute seconds=1
      policytrim fault arm collision joint=3        then: policytrim fault arm clear; policytrim clear-fault
      policytrim fault front stall                  then: policytrim fault front clear
      policytrim fault arm list
    """

    def add_arguments(self, parser) -> None:
        parser.add_argument("where", choices=("arm", "front", "wrist"), help="what fails")
        parser.add_argument("fault", help="its fault; list: all of them, clear: end them, state: what the arm really does")
        parser.add_argument("details", nargs="*", metavar="name=value", help="its numbers, such as seconds=1")
        add_session(parser)

    def run(self, options) -> int:
        session = session_name(LaunchArguments(session=options.session))
        module = importlib.import_module("sim_bridge.faults" if options.where == "arm" else "sim_bridge.realsense")
        if options.fault == "list":
            print(
                "\n".join(f"{name:14} {fault.doc}" for name, fault in module.FAULTS.items())
                if options.where == "arm"
                else "\n".join(module.FAULTS)
            )
        elif options.where == "arm":
            try:
                answer = module.inject(str(runtime_dir() / f"{session}.can"), options.fault, **numbers(options.details))
            except module.FaultError as error:
                raise CommandError(str(error)) from error
            print(json.dumps(answer))
        else:
            try:
                module.inject(session, options.where, options.fault)
            except ValueError as error:
                raise CommandError(str(error)) from error
        return 0


class Checkpoint:
    """look at a checkpoint, check it, compare two, give it golden observations, or import a pi0 of the transformers library

    examples:
      policytrim checkpoint show models/piper-pi0-tiny
      policytrim checkpoint verify models/piper-pi0-tiny
      policytrim checkpoint diff models/piper-pi0-tiny runs/mine
      policytrim checkpoint golden models/mine       what it predicts now, to be compared wherever it is loaded
      policytrim checkpoint import DIRECTORY --contract contract.yaml --out models/pi0
    """

    def add_arguments(self, parser) -> None:
        actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
        for name, said in (("show", "print the manifest"), ("verify", "check every file against the manifest")):
            actions.add_parser(name, help=said).add_argument("directory", help="directory of the checkpoint")
        two = actions.add_parser("diff", help="say in what two checkpoints differ: contract, making, evaluation, weights")
        two.add_argument("directory", help="the first one")
        two.add_argument("other", help="the second one")
        golden = actions.add_parser("golden", help="record golden observations of its tasks in the simulator, and its answers")
        golden.add_argument("directory", nargs="+", help="directories of checkpoints")
        environment = importlib.import_module("policytrim_ros.training.recipe").ENVIRONMENT
        golden.add_argument("--environment", default=environment, help="factory of the environment, module:name")
        importer = actions.add_parser("import", help="make a checkpoint of a PI0 directory written by transformers")
        importlib.import_module("policytrim_ros.policies.pi0").add_arguments(importer)

    def run(self, options) -> int:
        checkpoint = importlib.import_module("policytrim_ros.policies.checkpoint")
        try:
            if options.action == "import":
                return importlib.import_module("policytrim_ros.policies.pi0").main(options)
            if options.action == "golden":
                from policytrim_ros.training.golden_scenes import record

                for directory in options.directory:
                    record(directory, options.environment)
                    print(f"{directory}: golden observations recorded")
            elif options.action == "show":
                print(json.dumps(checkpoint.read_manifest(options.directory), indent=2))
            elif options.action == "verify":
                files = checkpoint.verify(options.directory)["files"]
                print(f"{options.directory} is whole: {len(files)} files as in its manifest")
            else:
                print("\n".join(checkpoint.diff(options.directory, options.other)) or "the same policy, made the same way")
        except checkpoint.CheckpointError as error:
            raise CommandError(str(error)) from error
        return 0


class Doctor:
    """check what this machine offers, and with --live what the running system says of itself, before the first go of a day

    examples:
      policytrim doctor                                  Python, ROS 2, Vulkan, CAN, cameras, memory, disk, clock, real-time rights
      policytrim doctor --robot --live --checkpoint models/mine

    A line for each subject, with what to do, and one for a subject that does not answer; exit code 1 when something is missing. It ends
    within 60 s.
    """

    def add_arguments(self, parser) -> None:
        parser.add_argument("--robot", action="store_true", help="what only a robot needs counts as a failure when it is missing")
        parser.add_argument(
            "--live", action="store_true", help="listen to the running system: bus, arm, limits, setpoints, clocks, cameras, policy"
        )
        parser.add_argument("--checkpoint", default="", help="also check this checkpoint, whether it fits, and whether it has passed the gate")
        add_namespace(parser)

    def run(self, options) -> int:
        from policytrim_ros.doctor import doctor
        from policytrim_ros.findings import hanging

        code = doctor(options.robot, options.checkpoint, options.live, options.namespace)
        if hanging():
            os._exit(code)  # what hangs would hold up the ordinary end, or abort it
        return code


class Delegate:
    """Base of the commands whose options and work are a module's ``add_arguments(parser)`` and ``main(options) -> exit code``."""

    module = ""

    def add_arguments(self, parser) -> None:
        importlib.import_module(self.module).add_arguments(parser)

    def run(self, options) -> int:
        return importlib.import_module(self.module).main(options)


class Demos(Delegate):
    """make demonstrations in the simulator, record them on the robot, or look at a data set of them"""

    module = "policytrim_ros.training.demos"

    def add_arguments(self, parser) -> None:
        from policytrim_ros.training.recording import RecordConfig

        recorder = (
            importlib.import_module(self.module)
            .add_arguments(parser)
            .add_parser(
                "record",
                help="listen to the running system, a robot or simulated, and keep the episodes that succeed",
                epilog="example: policytrim demos record out:=data/mine episodes:=20",
            )
        )
        add_arguments(recorder, RecordConfig)
        add_namespace(recorder)

    def run(self, options) -> int:
        if options.action != "record":
            return super().run(options)
        from policytrim_ros.training.recording import RecordConfig

        given = texts(options, RecordConfig)
        from_text(RecordConfig, given)  # refused before ROS is loaded
        from policytrim_ros.nodes.demos import main

        words = [
            word for name, value in values_of(RecordConfig, given).items() for word in ("-p", f"{name}:={json.dumps(value)}")
        ]
        namespace = options.namespace.strip("/")
        return main(["record", "--ros-args", *(["-r", f"__ns:=/{namespace}"] if namespace else []), *words])


class Train:
    """train a policy; the same command resumes after an interruption"""

    methods = {
        "sft": ("policytrim_ros.training.sft", "imitate the demonstrations of a recipe"),
        "trim": ("policytrim_ros.training.trim", "make a checkpoint finish in fewer steps with fewer calls (PolicyTrim)"),
    }

    def add_arguments(self, parser) -> None:
        methods = parser.add_subparsers(dest="method", required=True, metavar="METHOD")
        for name, (module, words) in self.methods.items():
            importlib.import_module(module).add_arguments(methods.add_parser(name, help=words))

    def run(self, options) -> int:
        return importlib.import_module(self.methods[options.method][0]).main(options)


class Evaluate(Delegate):
    """run a checkpoint in the simulator without ROS, as fast as it goes, and print its success rate"""

    module = "policytrim_ros.training.evaluate"


class Horizon(Delegate):
    """the longest execution horizon that an evaluation allows, by a rule that says what it guarantees

    examples:
      policytrim eval --checkpoint models/mine --task tape_box --horizon 5 8 10 15 --episodes 200 --out runs/calibration
      policytrim horizon runs/calibration.json --failures 0.1 --write models/mine

    Horizons are tested from the shortest on and the first that does not pass ends the test, so that with the given confidence every
    one that passed fails at most so often, in scenes like those of the evaluation. Exit code 3: none passes.
    """

    module = "policytrim_ros.training.horizon_choice"


class Serve(Delegate):
    """serve a checkpoint to robots: the policy runs here, the arm elsewhere (openpi's websocket protocol)

    examples:
      policytrim serve models/mine --device cuda
      ssh -L 8000:127.0.0.1:8000 gpu-machine         then, beside the arm: policytrim up checkpoint:=ws://127.0.0.1:8000

    It listens on 127.0.0.1; on any other address only with a token of 16 characters or more in POLICYTRIM_TOKEN, which clients need, too.
    """

    module = "policytrim_ros.policies.remote"


class Gate(Delegate):
    """play a checkpoint in the simulated twin as this machine would, before a robot may have it; the manifest remembers

    example: policytrim gate models/mine --task tape_box

    Same executor and limits as on the robot, latency as measured here. Passed: no episode in which the controller would hold
    the arm, and enough successes. Exit code 0: passed, 3: not.
    """

    module = "policytrim_ros.training.gate"


class Replay(Delegate):
    """play the recording of a trial through the executor again, and ask what another h or checkpoint would have done"""

    module = "policytrim_ros.replay"


class Compare(Delegate):
    """compare two evaluations scene by scene: success, steps, calls, seconds, and whether B is not worse than A

    examples:
      policytrim compare runs/eval/base.json runs/eval/trimmed.json
      policytrim compare runs/eval/grid.json#0 runs/eval/grid.json#4 --margin 0.03
    """

    module = "policytrim_ros.training.compare"


COMMANDS = {
    "up": Up,
    "demo": Demo,
    "trial": Trial,
    "trials": Trials,
    "console": Console,
    "replay": Replay,
    "go": Go,
    "hold": Hold,
    "home": Home,
    "park": Park,
    "clear-fault": ClearFault,
    "damped-stop": DampedStop,
    "swap": Swap,
    "roll-back": RollBack,
    "trainer": Trainer,
    "doctor": Doctor,
    "fault": Fault,
    "restart": Restart,
    "wait": Wait,
    "checkpoint": Checkpoint,
    "demos": Demos,
    "train": Train,
    "eval": Evaluate,
    "gate": Gate,
    "horizon": Horizon,
    "serve": Serve,
    "compare": Compare,
}


class CommandError(RuntimeError):
    """A command cannot be carried out; the message says why and what to do."""


def add_namespace(parser) -> None:
    parser.add_argument("--namespace", default="", help="ROS namespace of the running system (default: none)")


def add_session(parser) -> None:
    parser.add_argument("--session", default="", help="name of the running system (default: domain-<ROS_DOMAIN_ID>)")


def numbers(words) -> dict[str, float]:
    """{name: number} from ``name=value`` words; CommandError on anything else."""
    values = {}
    for word in words:
        name, _, text = word.partition("=")
        try:
            values[name] = float(text)
        except ValueError:
            raise CommandError(f"'{word}': expected name=number") from None
    return values


TIMED = ("trial", "trials", "swap", "trainer", "console", "doctor")
"""Commands that compare a running system's times with their own."""


def keep_its_time(argv) -> None:
    """Where the running system's time is simulated (real_time_factor), becomes the same command on its clock."""
    clock = clock_file(session_name(LaunchArguments()))
    if clock.exists() and "POLICYTRIM_SIM_CLOCK" not in os.environ:
        os.execv(sys.executable, [*on_clock(str(clock), "1"), sys.executable, "-m", "policytrim_ros.cli", *argv])


def parser_for(argv) -> argparse.ArgumentParser:
    """The parser, with the options of the command in ``argv`` alone."""
    chosen = next((word for word in argv if not word.startswith("-")), None)
    parser = argparse.ArgumentParser(
        prog="policytrim",
        description="Trimmed policies on an AgileX Piper, simulated or real.",
        epilog="`policytrim COMMAND --help` explains a command and gives examples.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        summary, _, rest = command.__doc__.partition("\n\n")
        sub = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=_dedented(rest),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name == chosen:
            command().add_arguments(sub)
    return parser


def main(argv=None) -> int:
    """Runs one command; returns its exit code. What goes wrong is one sentence on stderr and exit code 1."""
    argv = sys.argv[1:] if argv is None else argv
    options = parser_for(argv).parse_args(argv)
    try:
        if options.command in TIMED:
            keep_its_time(argv)
        return COMMANDS[options.command]().run(options) or 0
    except (ConfigError, CommandError, *_refusals()) as error:
        print(f"policytrim {options.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _refusals():
    from policytrim_ros.up import StartRefused

    return (StartRefused, PermissionError, FileNotFoundError)


def _dedented(text: str) -> str:
    return "\n".join(line[4:] if line.startswith("    ") else line for line in text.rstrip().split("\n"))


if __name__ == "__main__":
    sys.exit(main())
