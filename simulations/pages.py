"""Pages that hold everything they need: a template, plotly's script, and the charts' data.

They work offline and in both themes. All that comes from files is escaped.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fedsparse
from fedsparse.errors import MissingExtraError

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, figures: Mapping[str, Any], *, what: str, **context: Any) -> str:
    """Return a page as HTML; raises MissingExtraError, which names `what`, without the extra."""
    try:
        import jinja2
        from markupsafe import Markup
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise MissingExtraError(what, "report") from None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(
        version=fedsparse.__version__,
        plotly=Markup(get_plotlyjs().replace("</script", "<\\/script")),  # nosec B704
        figures=Markup(script_json(figures)),  # nosec B704
        **context,
    )


def script_json(value: Any) -> str:
    """Return JSON that cannot end the script element which holds it."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
