"""What schemathesis cannot know of the interface."""

import schemathesis
from hypothesis import strategies as st

# Such texts are read as lengths of time. Those given here fit wherever one is taken, and none of
# them makes a request wait for long.
schemathesis.openapi.format(
    "duration-text",
    st.sampled_from(["100ms", "0s 150ms", "0m 120ms", "0h 0m 0s 200ms", "0h 110ms"]),
)
