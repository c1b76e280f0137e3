"""``orchestrator completion``: what a shell needs to complete commands and options.

Made from the table of verbs and from their parsers, so it cannot fall behind them::

    source <(orchestrator completion bash)          # in ~/.bashrc; likewise zsh
    orchestrator completion fish | source           # in ~/.config/fish/config.fish
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence

from orchestrator.cli._shared.parser import Parser, options_of
from orchestrator.cli._shared.verbs import Verb


def main(argv: Sequence[str], verbs: Mapping[str, Verb]) -> int:
    """Print the script for one shell, which completes ``verbs``."""
    parser = Parser(
        prog="orchestrator completion",
        description="print a script that lets a shell complete commands and options",
    )
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))
    shell = parser.parse_args(argv).shell
    lines = _fish(verbs) if shell == "fish" else _bash(verbs, zsh=shell == "zsh")
    print("\n".join(lines))
    return 0


def _bash(verbs: Mapping[str, Verb], *, zsh: bool) -> Iterator[str]:
    if zsh:
        yield "autoload -U +X compinit && compinit -i"
        yield "autoload -U +X bashcompinit && bashcompinit"
    yield "_orchestrator() {"
    yield "  local current=${COMP_WORDS[COMP_CWORD]} words="
    yield "  COMPREPLY=()"
    yield '  if [ "$COMP_CWORD" -eq 1 ]; then'
    yield f"    words={shlex.quote(' '.join(verbs))}"
    yield '  elif [ "${current#-}" != "$current" ]; then'
    yield '    case "${COMP_WORDS[1]}" in'
    for name, verb in verbs.items():
        yield f"      {name}) words={shlex.quote(' '.join(options_of(verb.main)))} ;;"
    yield "    esac"
    yield "  fi"
    yield '  [ -n "$words" ] && COMPREPLY=($(compgen -W "$words" -- "$current"))'
    yield "}"
    # What is no option is a file, which the shell completes by itself.
    yield "complete -o default -F _orchestrator orchestrator"


def _fish(verbs: Mapping[str, Verb]) -> Iterator[str]:
    for name, verb in verbs.items():
        yield (
            f"complete -c orchestrator -n __fish_use_subcommand -a {name} "
            f"-d {shlex.quote(verb.summary)}"
        )
        for option in options_of(verb.main):
            if option.startswith("--"):
                seen = shlex.quote(f"__fish_seen_subcommand_from {name}")
                yield f"complete -c orchestrator -n {seen} -l {option[2:]}"
