from .adaptive import AdaptivePolicy as AdaptivePolicy
from .adaptive import Choice as Choice
from .replay import ReplayBuffer as ReplayBuffer
from .responding import end_token as end_token
from .responding import respond as respond
from .sampling import Sampling as Sampling
