"""The private system bus of the tests of the bus."""

from tests.integration.bus.conftest import bus as bus
