"""`wagle push FOLDER`: publishes a run or its changes on the Hub, with a card. `wagle card FOLDER`: writes the card."""

from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import ModelCard

from ..files.atomic import move_into_place, staging_folder
from ..files.hub_file import full_name
from ..files.manifest import Manifest
from ..files.run_folder import CARD_FILE
from ..hub.card import model_card, read_card
from ..hub.publish import earlier_weights, publish
from .output import Output, key_value_table
from .parser import WagleParser


@dataclass
class CardArguments:
    """
    Options of the card.

    Args:
        what, before, license, hash_forget_set: As in [`~wagle_trl.hub.card.model_card`].
        base_model_name_or_path: Name of the base on the Hub.
    """

    what: str = field(
        default="model",
        metadata={
            "help": "'model': the files that load it, and the mask. 'mask': the mask. 'delta': the new values of the "
            "selected weights, which `wagle_trl.load_unlearned` puts into the base model.",
            "choices": ["model", "mask", "delta"],
        },
    )
    base_model_name_or_path: str | None = field(
        default=None, metadata={"help": "The base model on the Hub, if the run loaded it from a folder."}
    )
    before: str | None = field(
        default=None,
        metadata={"help": "Output folder of `wagle eval` of the base model, to compare with in the card."},
    )
    license: str | None = field(
        default=None, metadata={"help": "Identifier of the licence on the Hub; by default that of the base model."}
    )
    hash_forget_set: bool = field(
        default=False,
        metadata={
            "help": "Name no data set in the card, only the number of rows and, if the run made them, keyed digests."
        },
    )

    def card(self, folder: str, repo_id: str | None) -> ModelCard:
        """Make the card of a run for a repository."""
        return model_card(
            folder,
            what=self.what,
            repo_id=repo_id,
            base_model=self.base_model_name_or_path,
            before=self.before,
            license=self.license,
            hash_forget_set=self.hash_forget_set,
        )


@dataclass
class PushArguments:
    """Options of the repository, under TRL's names."""

    hub_model_id: str | None = field(
        default=None, metadata={"help": "Repository, such as user/name; by default the name of FOLDER."}
    )
    hub_token: str | None = field(default=None, metadata={"help": "Token to use; by default that of `hf auth login`."})
    hub_private_repo: bool | None = field(default=None, metadata={"help": "Whether a new repository is private."})
    hub_revision: str | None = field(default=None, metadata={"help": "Branch to push to, created if it is missing."})
    commit_message: str | None = field(default=None, metadata={"help": "Message of the commit."})
    card: str | None = field(
        default=None, metadata={"help": "File with your own card, such as an edited one of `wagle card`."}
    )


def run(argv: list[str], command: str) -> Output:
    return {"push": _push, "card": _card}[command](argv)


def _push(argv: list[str]) -> Output:
    parser = WagleParser([PushArguments, CardArguments], prog="wagle push", allow_abbrev=False)
    parser.add_argument("folder", metavar="FOLDER", help="Output folder of a run.")
    hub, about, names = parser.parse_args_and_config(argv)
    name = full_name(hub.hub_model_id or Path(names.folder).resolve().name, hub.hub_token)
    # Made before anything is uploaded, so that errors in the folder or the options come first
    card = about.card(names.folder, name) if hub.card is None else read_card(hub.card)
    published = publish(
        names.folder,
        name,
        card,
        what=about.what,
        base_model=about.base_model_name_or_path,
        private=hub.hub_private_repo,
        token=hub.hub_token,
        revision=hub.hub_revision,
        commit_message=hub.commit_message,
    )
    content = {"what": about.what, "hub_model_id": name, "commit": str(published.commit)}
    lists = {"left_out": published.left_out, "replaced": published.replaced}
    messages = [f"Left out: {', '.join(published.left_out)}."] if published.left_out else []
    messages += [earlier_weights(name, hub.hub_revision, published.replaced)] if published.replaced else []
    return Output(content | lists, [key_value_table(f"Pushed: {names.folder}", content), *messages])


def _card(argv: list[str]) -> Output:
    parser = WagleParser([CardArguments], prog="wagle card", allow_abbrev=False)
    parser.add_argument("folder", metavar="FOLDER", help=f"Output folder of a run; gets the card as {CARD_FILE}.")
    about, names = parser.parse_args_and_config(argv)
    folder = Path(names.folder)
    path = folder / CARD_FILE
    card, save = about.card(names.folder, None), Manifest.read(folder)
    with staging_folder(folder) as stage:
        card.save(stage / CARD_FILE)
        if save is None:
            move_into_place(stage, folder, [CARD_FILE])
        else:
            save.with_files(stage, [CARD_FILE]).move_into_place(stage, folder)
    return Output({"card": str(path), "text": str(card)}, [f"Written: {path}"])
