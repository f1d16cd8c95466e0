import pytest

from wagle_trl import MEConfig, NPOConfig, POConfig


@pytest.mark.parametrize(
    "config, option",
    [
        (NPOConfig, {"retain_loss": "klx"}),
        (NPOConfig, {"reference_states": "disk"}),
        (POConfig, {"attributed_rows": "retain"}),
        (MEConfig, {"direction": "up"}),
    ],
    ids=str,
)
def test_an_option_that_is_none_of_its_choices_is_refused_by_name(config, option, tmp_path):
    ((name, value),) = option.items()
    with pytest.raises(ValueError, match=f"{name} must be one of .*, got '{value}'"):
        config(str(tmp_path), report_to="none", **option)
