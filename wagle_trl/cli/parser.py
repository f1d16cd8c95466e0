"""Options from the command line and from YAML files, as in TRL."""

from trl import TrlParser


class WagleParser(TrlParser):
    """`TrlParser` that raises on bad usage, so that the user sees one line instead of two hundred options."""

    def error(self, message: str):
        raise ValueError(f"{message} (see `{self.prog} --help`)")

    def parse_args_and_config(self, args: list[str], *others, **options):
        if args[-1:] == ["--config"]:
            self.error("argument --config: expected one argument")
        return super().parse_args_and_config(args, *others, **options)


def parse(dataclass_types: list[type], argv: list[str], command: str) -> tuple:
    """Options of `command` from a YAML file (`--config`) and the command line, which wins."""
    parser = WagleParser(dataclass_types, prog=f"wagle {command}", allow_abbrev=False)
    return parser.parse_args_and_config(argv)
