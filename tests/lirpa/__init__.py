"""auto_LiRPA 0.3 does not import beside today's numpy before etb_plugin is there."""

import etb_plugin  # noqa: F401
