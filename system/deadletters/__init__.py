"""Dead letters: messages that a consumer gave up, kept with everything that is known, and the way back.

A consumer buries through `DeadLetterOffice`; people list, read, replay and drop with `python -m system.deadletters`.
Nothing is ever lost on the way: a message is terminated only after its dead letter is stored, and a dead letter is
removed only after its replay is stored.
"""

from system.deadletters.office import DeadLetterOffice

__all__ = ["DeadLetterOffice"]
