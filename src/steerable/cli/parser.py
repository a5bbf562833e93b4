"""Parsers from typed functions: annotations become options, docstrings become help.

A parameter before the ``*`` is positional, and may be left out where it has a default; ``*names`` takes one or more
words, what follows it is an option, and a ``bool`` that is False by default is a switch. A parameter whose type is a
dataclass opens into one option per field (``--optimizer.lr``) and ``--config FILE``, a YAML file with the same keys;
options override the file. ``Annotated[str, "SRC"]`` names the placeholder that the help shows;
``Annotated[TrainConfig, {title: names}]`` sorts the fields into groups. A parameter called ``recipe`` is
no option: it gets the last file given as --config. One called ``theta``, a dict, becomes an option for each coordinate
of the transforms (``--hue 0.1``) and gets those that were given.
"""

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, NoReturn, get_args, get_origin, get_type_hints

import docstring_parser
from jsonargparse import ArgumentParser

from steerable.cli.complaints import complaint
from steerable.cli.recipes import check_recipe, recipe_files
from steerable.cli.wording import HelpFormatter, members, metavar_for, optional, shown_default, usage

ALIASES = {"--data": "--data.root"}
GENERAL = ("verbose", "debug")
RECIPE = "recipe"
THETA = "theta"


class Parser(ArgumentParser):
    """jsonargparse's parser for one command, with our groups and our errors.

    group: the command that this one belongs to, if any: ``eval``.
    """

    def __init__(self, command: Callable[..., Any], *, group: str = ""):
        doc = docstring_parser.parse(inspect.getdoc(command) or "")
        lines = [line for example in doc.examples for line in (example.description or "").splitlines()]
        super().__init__(
            prog=" ".join(filter(None, ("steerable", group, command.__name__))),
            description="\n\n".join(filter(None, (doc.short_description, doc.long_description))),
            epilog="\n".join(["examples:", *(f"  {line}" for line in lines)]) if lines else None,
            formatter_class=HelpFormatter,
            exit_on_error=False,
            allow_abbrev=False,
            print_config=None,
            add_help=False,
        )
        self.command = command
        self.hints: dict[str, Any] = {}
        self.titles: dict[str, Any] = {"options": self._optionals, "arguments": self._positionals}
        self._positionals.title = "arguments"
        self.config: tuple[str, Any] | None = None
        self.words: Sequence[str] = ()
        about = {p.arg_name: _one_line(p.description) for p in doc.params}
        hints = get_type_hints(command, include_extras=True)
        for name, parameter in inspect.signature(command).parameters.items():
            _add_parameter(self, parameter, hints[name], about.get(name, ""))
        self.put("general", "-v", "--verbose", hint=bool, action="store_true", help="log more to stderr")
        self.put("general", "--debug", hint=bool, action="store_true", help="show the traceback of an error")
        self.put("general", "-h", "--help", hint=bool, action="store_true", help="show this and exit")
        self.usage = usage(self.prog, self._actions)

    def put(self, title: str, *flags: str, hint: Any, **settings: Any) -> None:
        """Add an argument to the group of that title."""
        if title not in self.titles:
            self.titles[title] = self.add_argument_group(title)
        self.hints[flags[-1].lstrip("-").replace("-", "_")] = hint
        self.titles[title].add_argument(*flags, **settings)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise complaint(message, self) from None

    def read(self, words: Iterable[str]) -> tuple[list[Any], dict[str, Any], dict[str, bool]]:
        """Positional and named arguments of the command, and the general options.

        Raises:
            ConfigError: anything that was given and does not fit.
        """
        self.words = self._nulls([self._spelled(word) for word in words])
        files = list(recipe_files(self.words)) if self.config else []
        for file in files:
            check_recipe(file, self.config[1])  # pyright: ignore[reportOptionalSubscript]
        values = self.parse_args(self.words).as_dict()
        general = {name: bool(values[name]) for name in GENERAL}
        positional: list[Any] = []
        named: dict[str, Any] = {}
        for name, parameter in inspect.signature(self.command).parameters.items():
            if self.config and name == self.config[0]:
                named[name] = _filled(self.config[1], values)
            elif name == RECIPE:
                named[name] = files[-1] if files else None
            elif name == THETA:
                named[name] = {key: values[key] for key in _coordinates() if values[key] is not None}
            elif parameter.kind is parameter.KEYWORD_ONLY:
                named[name] = values[name]
            elif parameter.kind is parameter.VAR_POSITIONAL:
                positional.extend(values[name])
            else:
                positional.append(values[name])
        return positional, named, general

    def _nulls(self, words: Sequence[str]) -> list[str]:
        """The words with `none` as `null` after an option that takes null; the helps say none."""
        out = list(words)
        for place, word in enumerate(words[1:], start=1):
            hint = self.hints.get(words[place - 1].lstrip("-").replace("-", "_"), str)
            if word.lower() == "none" and optional(hint) and str not in members(hint):
                out[place] = "null"
        return out

    def _spelled(self, word: str) -> str:
        """The word with its option's alias resolved, and with - for _ or the reverse where that is known."""
        if not word.startswith("--"):
            return word
        flag, equals, value = word.partition("=")
        flag = ALIASES.get(flag, flag)
        known = self._option_string_actions
        for other in (flag, "--" + flag[2:].replace("-", "_"), "--" + flag[2:].replace("_", "-")):
            if other in known:
                return other + equals + value
        return word


def _add_parameter(parser: Parser, parameter: inspect.Parameter, hint: Any, about: str) -> None:
    plain, note = get_args(hint)[:2] if get_origin(hint) is Annotated else (hint, None)
    name, default = parameter.name, parameter.default
    if name == RECIPE:
        return
    if name == THETA:
        for key, words in _coordinates().items():
            parser.put(THETA, f"--{key}", type=float | None, metavar="X", hint=float, help=words)
        return
    if dataclasses.is_dataclass(plain):
        parser.config = (name, plain)
        parser.add_argument("--config", action="config", help=about, metavar="FILE")
        _add_fields(parser, plain, note or {})
        return
    settings: dict[str, Any] = {"hint": plain, "help": about}
    if parameter.kind is not parameter.KEYWORD_ONLY:
        several = {"nargs": "+"} if parameter.kind is parameter.VAR_POSITIONAL else {}
        several |= {} if default is parameter.empty else {"nargs": "?", "default": default}
        parser.put("arguments", name, type=plain, metavar=note or name.upper(), **several, **settings)
        return
    flag = f"--{name.replace('_', '-')}"
    if plain is bool and default is False:
        parser.put("options", flag, action="store_true", **settings)
        return
    settings |= {"required": True} if default is parameter.empty else {"default": default}
    settings["help"] += shown_default(settings.get("default"))
    if get_origin(plain) is list:
        settings |= {"nargs": "+"}
        plain = get_args(plain)[0]
    flags = (f"-{name}", flag) if len(name) == 1 else (flag,)
    parser.put("options", *flags, type=plain, metavar=note or metavar_for(name, plain), **settings)


def _add_fields(parser: Parser, config: Any, groups: Mapping[str, str], prefix: str = "") -> None:
    """One option per field: those in ``groups``, then the others, nested ones under their own names."""
    hints = get_type_hints(config)
    about = {p.arg_name: _one_line(p.description) for p in docstring_parser.parse_from_object(config).params}
    title_of = {name: title for title, names in groups.items() for name in names.split()}
    order = [*title_of, *(item.name for item in dataclasses.fields(config) if item.name not in title_of)]
    fields = {item.name: item for item in dataclasses.fields(config)}
    for item in (fields[name] for name in order):
        hint = hints[item.name]
        if dataclasses.is_dataclass(hint):
            _add_fields(parser, hint, {}, f"{prefix}{item.name}.")
            continue
        default = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
        title = title_of.get(item.name) or prefix.rstrip(".") or "settings"
        help = about.get(item.name, "") + shown_default(default)
        metavar = "PATH" if f"--{prefix}{item.name}" in ALIASES.values() else metavar_for(item.name, hint)
        parser.put(
            title, f"--{prefix}{item.name}", hint=hint, type=hint, default=default, help=help, metavar=metavar
        )


def _coordinates() -> dict[str, str]:
    """Name and unit of every coordinate that a chain can have."""
    from steerable.transforms import TRANSFORMS

    return {param.name: param.unit for kind in TRANSFORMS.values() for param in kind().params}


def _filled(config: Any, values: Mapping[str, Any]) -> Any:
    hints = get_type_hints(config)
    parts = {item.name: values[item.name] for item in dataclasses.fields(config)}
    return config(
        **{k: _filled(hints[k], v) if dataclasses.is_dataclass(hints[k]) else v for k, v in parts.items()}
    )


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())
