"""The operator's console: a local web page, and the same in a terminal.

    browser, terminal <--HTTP, WebSocket--> server.py <--Cockpit (cockpit.py)--> the operator's node, or a test

server.py serves, access.py says who may do what, glance.py puts a state into one word, page/ is the web page (no build step, nothing
from elsewhere), terminal.py the client for SSH. Nothing here knows ROS.
"""
