"""What follows from a score: thresholds from the artifact's calibration, actions from the settings, by role."""

from __future__ import annotations

import msgspec

from service.errors import ConfigError
from service.firewall.prompt import FOREIGN, ROLES, Role
from service.firewall.verdict import Action, Category
from service.scoring.artifact import Manifest, Threshold
from service.settings import Actions, Detection

POOLED = "pooled"


class RolePolicy(msgspec.Struct, frozen=True):
    """For one role: scores in [0, 1] from which a text is flagged and from which `actions` decide.

    `own` are the two thresholds for text of this role that is not foreign (`Segment.foreign`), such as a tool's
    definition: it is scored as the caller's words are, so it is held to their thresholds.
    """

    flag_threshold: float
    block_threshold: float
    actions: Actions
    own: tuple[float, float] | None = None

    def action(self, score: float, category: str, *, foreign: bool = True) -> Action:
        """The action for a text. A category that the policy allows is not flagged either."""
        effect: Action = getattr(self.actions, category, "block")
        flag, block = self.own if self.own is not None and not foreign else (self.flag_threshold, self.block_threshold)
        if score >= block:
            return effect
        if score >= flag and effect != "allow":
            return "flag"
        return "allow"


def role_policies(detection: Detection, manifest: Manifest) -> dict[Role, RolePolicy]:
    """The policy of every role.

    A role without thresholds of its own at a rate takes the pooled ones. Raises ConfigError naming the key where a rate
    is not calibrated in the artifact, with the rates that are.
    """
    policies: dict[Role, RolePolicy] = {}
    for role in ROLES:
        flag = threshold_of(manifest, role, detection.flag_fpr, "detection.flag_fpr")
        block = threshold_of(manifest, role, detection.block_fpr, "detection.block_fpr")
        actions = getattr(detection.roles, role) or detection.actions
        policies[role] = RolePolicy(flag, max(flag, block), actions)
    user = policies["user"]
    for role in FOREIGN & manifest.origins.keys():
        policies[role] = msgspec.structs.replace(policies[role], own=(user.flag_threshold, user.block_threshold))
    return policies


def threshold_of(manifest: Manifest, role: Role, rate: float, key: str) -> float:
    """The score from which a role's texts are at this false-positive rate. Raises ConfigError naming the `key`."""
    for table in (role, POOLED):
        found = _at(manifest.thresholds.get(table, {}), rate)
        if found is not None:
            return found.threshold
    known = ", ".join(sorted(manifest.thresholds.get(POOLED, {}), key=float, reverse=True)) or "none"
    raise ConfigError(f"{key}: {rate:g} is not calibrated in artifact {manifest.name!r}; available: {known}")


def _at(table: dict[str, Threshold], rate: float) -> Threshold | None:
    return next((threshold for name, threshold in table.items() if float(name) == rate), None)


def as_category(label: str) -> Category:
    """An attack label of the model as a category; labels unknown here count as injection."""
    return label if label in ("injection", "jailbreak", "extraction") else "injection"  # type: ignore[return-value]
