"""Run-time checks of annotated arrays: the fields of a module and the method that runs share a scope of axis names."""

from elegy import checks
from elegy.typechecking import inference, scopes, switch

checks.instead_of(checks.define)(switch.define)
checks.instead_of(checks.first_run)(switch.first_run)
checks.instead_of(checks.infer_shape)(inference.infer_shape)
checks.instead_of(checks.infer_dtype)(inference.infer_dtype)
checks.instead_of(checks.check_parameter)(scopes.check_parameter)
checks.instead_of(checks.check_constructed)(switch.check_constructed)
checks.instead_of(checks.checked_function)(switch.checked_function)
checks.instead_of(checks.explain)(scopes.explain)

for _cls in list(checks.classes):  # those that were defined before
    switch.define(_cls)
