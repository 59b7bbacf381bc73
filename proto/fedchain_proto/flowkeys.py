"""Names of what fedchain adds to a Flower message; clients and server must agree on each.

Flower carries a ConfigRecord named `RECORD` beside the app's own records; its keys are below.
"""

RECORD = "fedchain"

# Server to client.
HELLO = "hello"  # bytes: a nonce; "who are you?", asked before the first round
ROUND_OPENED = "round-opened"  # bytes: receipt of the RoundOpened that this instruction follows
CLOSED = "round-closed"  # bytes: receipt of the previous round's RoundClosed, from round 2 on
APP = "app"  # bytes: what else the instruction digest covers

# Client to server.
NAME = "name"  # str: the participant's name, in answer to HELLO
SIGNATURE = "signature"  # bytes: over the HELLO's nonce
UPDATE = "update"  # bytes: the envelope of the UpdateSubmitted
REFUSED = "refused"  # str: why the client declined

# The owner's folder, in Flower's own context.node_config: it stays on the owner's machine.
NODE_CONFIG_HOME = "fedchain-home"

# Flower's own convention for the weight of an update, in the reply's MetricRecord.
NUM_EXAMPLES = "num-examples"

# Codes of a Flower error reply that the in-process Grid makes; far from Flower's own.
ERROR_FAILED = 1001  # the client raised, exited or crashed
ERROR_OVERRAN = 1002  # it ran past its time-out and was stopped
ERROR_MALFORMED = 1003  # it returned something that is no reply
ERROR_REFUSED = 1004  # `fedchain.attest` declined, saying why
