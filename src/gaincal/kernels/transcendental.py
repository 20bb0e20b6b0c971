"""Constants of the two transcendental operations, shared by the reference and the compiler.

exp and log are not correctly rounded by any library that everyone has, so the specification fixes
a sequence of IEEE double operations for each.  The splitting of ln 2 and the arrangement
of log are those of fdlibm (Sun Microsystems, 1993); the series are Taylor's, long enough for a double.
"""

from __future__ import annotations

import math

LOG2_E = 1.4426950408889634
LN2_HIGH = 6.93147180369123816490e-01
LN2_LOW = 1.90821492927058770002e-10
EXP_OVERFLOW = 710.0
EXP_UNDERFLOW = -746.0
EXP_SERIES = tuple(1.0 / math.factorial(n) for n in range(14))
SQRT_2 = 1.4142135623730951
LOG_SERIES = tuple(1.0 / (2 * n + 3) for n in range(11))
SUBNORMAL_SCALE = 54
