"""Find which channels of a captured model go together, and which must stay."""

from secateur.groups.build import build_groups
from secateur.groups.group import ChannelGroup, Member
from secateur.groups.solve import Solution, solve
from secateur.groups.walk import Walk, walk

__all__ = ["ChannelGroup", "Member", "Solution", "Walk", "build_groups", "solve", "walk"]
