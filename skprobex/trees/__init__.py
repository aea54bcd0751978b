"""Model Trees: discover them, route to their experts, recover their descent."""

from ._clustering import ModelTreeClustering
from ._experts import TreeExperts
from ._heritage import Heritage, recover_heritage

__all__ = ["Heritage", "ModelTreeClustering", "TreeExperts", "recover_heritage"]
