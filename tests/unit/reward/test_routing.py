"""Which verifier a data source gets."""

import pytest

from services.reward.routing import Router
from sluice.config.schema import GraderConfig

OF_ONES_OWN = "tests.integration.reward_nasty_verifier"


@pytest.mark.parametrize(
    ("data_source", "name"),
    [
        ("mixadd3", "mixadd3"),
        ("reasoning_gym/chain_sum", "reasoning_gym"),
        ("math_dapo", "math_dapo"),
        ("math", "math_dapo"),
        ("math_dapo_reasoning", "math_dapo"),
        ("aime2024", "math_dapo"),
        ("openai/gsm8k", "gsm8k"),
    ],
)
def test_known_data_sources_have_their_verifier(data_source, name):
    (part,) = Router().parts_of(data_source)
    assert (part.name, part.verifier, part.weight) == (name, f"services.reward.verifiers.{name}", 1.0)


@pytest.mark.parametrize("data_source", ["", "gsm8k", "math_verify", "reasoning_gym", "MATH"])
def test_an_unknown_data_source_is_refused_with_the_known_ones_and_the_fix(data_source):
    with pytest.raises(ValueError, match=r"mixadd3, reasoning_gym/\*, math_dapo.*reward\.routes"):
        Router().parts_of(data_source)


def test_routes_of_the_recipe_go_first_and_may_name_a_module_of_ones_own():
    router = Router({"math": OF_ONES_OWN, "gsm8k*": "math_dapo"})
    assert [part.verifier for part in router.parts_of("math")] == [OF_ONES_OWN]
    assert [part.name for part in router.parts_of("gsm8k/main")] == ["math_dapo"]
    assert [part.name for part in router.parts_of("math_dapo")] == ["math_dapo"]


@pytest.mark.parametrize(
    ("routes", "expected"),
    [({"*": "numeric"}, True), ({"math_*": "exact"}, True), ({"math": "exact"}, False), ({}, False)],
)
def test_a_data_source_of_the_built_in_table_counts_as_the_recipes_when_the_recipe_routes_it(routes, expected):
    assert Router(routes).is_routed_by_recipe("math_dapo") is expected


def test_a_route_to_no_verifier_is_refused_at_once():
    with pytest.raises(ValueError, match=r"reward\.routes\.math: must be one of mixadd3, math_dapo, math_verify"):
        Router({"math": "maths"})


def test_a_module_that_is_not_there_is_refused_at_once():
    with pytest.raises(ValueError, match=r"reward\.routes\.math: no module my_company\.strict is found"):
        Router({"math": "my_company.strict"})


def test_the_list_of_verifiers_has_versions_for_the_built_in_ones_alone():
    listed = {route.name: route for route in Router({"x": OF_ONES_OWN}).routes()}
    assert listed["mixadd3"].version == "1"
    assert listed["math_dapo"].data_sources == ("math_dapo", "math", "math_dapo_reasoning", "aime*")
    assert listed[OF_ONES_OWN].version == ""


@pytest.mark.parametrize(
    ("route", "network"),
    [
        (GraderConfig(grader="math_dapo"), False),
        (GraderConfig(grader=OF_ONES_OWN), False),
        (GraderConfig(grader=OF_ONES_OWN, network=True), True),
        (GraderConfig(grader="judge", settings={"url": "http://127.0.0.1/v1", "model": "m"}), True),
    ],
)
def test_graders_have_no_network_unless_the_route_says_so_or_they_are_judges(route, network):
    router = Router({"mine": route})
    (part,) = router.parts_of("mine")
    assert (part.network, router.needs_network) == (network, network)


@pytest.mark.parametrize(
    ("stated", "accepted", "effective"),
    [
        ({}, False, "required"),
        ({}, True, "if_possible"),
        ({"isolation": "required"}, True, "required"),
        ({"isolation": "if_possible"}, False, "required"),
    ],
)
def test_programs_run_without_a_sandbox_only_where_the_operator_and_the_route_accept_it(stated, accepted, effective):
    routes = {"apps": GraderConfig(grader="code", settings=stated)}
    router = Router(routes, allow_unsandboxed=accepted)
    assert router.parts_of("apps")[0].settings["isolation"] == effective
    assert router.must_shut_in == ("reward.routes.apps" if effective == "required" else "")
    assert Router({}).must_shut_in == ""
