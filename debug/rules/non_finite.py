"""NaN or infinity in the loss or the gradients, traced to the operation that made it.

Statistic: the sum of all gradients before each update, and the losses.
Default: any NaN or infinity.  The step is then computed again, and each operation of its forward and backward pass is
inspected.
Why: one sum costs little, and the sum is not finite if one of its terms is not.
False alarms: none known.  With a GradScaler, gradients are inspected only once its scale is below 1, because overflowing
gradients are the way in which it finds the scale.
"""

from .finding import Rule

RULE = Rule(None, "critical", "look at the operations of the loss, and at this batch", source="NaN trap")
