"""Sockets of a library, found and shut down by their descriptors."""

import socket

from modelforge.training.connections import Connection, open_connections


def of(line: socket.socket) -> Connection:
    return next(connection for connection in open_connections() if connection.descriptor == line.fileno())


def test_new_connections_are_those_opened_since() -> None:
    before = open_connections()
    one, other = socket.socketpair()
    with one, other:
        assert {connection.descriptor for connection in open_connections() - before} == {one.fileno(), other.fileno()}
    assert open_connections() == before


def test_both_ends_find_a_connection_closed() -> None:
    one, other = socket.socketpair()
    with one, other:
        of(one).shut_down()
        assert (one.recv(1), other.recv(1)) == (b"", b"")


def test_a_listening_socket_is_left_alone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        of(server).shut_down()
        with socket.create_connection(server.getsockname(), timeout=5), server.accept()[0]:
            pass


def test_another_socket_of_the_same_descriptor_is_left_alone() -> None:
    one, other = socket.socketpair()
    with one, other:
        of(one)._replace(file=of(one).file + 10**6).shut_down()
        other.sendall(b"x")
        assert one.recv(1) == b"x"


def test_a_connection_that_is_gone_is_no_error() -> None:
    one, other = socket.socketpair()
    with other:
        gone = of(one)
        one.close()
        gone.shut_down()
    assert gone not in open_connections()
