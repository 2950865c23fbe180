%% Runs the scenarios of a file under OTP's own supervisor, and prints what each step led to.
-module(otp_itself).
-behaviour(supervisor).
-export([main/1, init/1, leaf/2]).

main(File) ->
    logger:set_primary_config(level, none),
    {ok, Scenarios} = file:consult(File),
    ets:new(log, [named_table, public, ordered_set]),
    ets:new(pids, [named_table, public]),
    persistent_term:put(ticket, atomics:new(1, [])),
    lists:foreach(fun scenario/1, Scenarios),
    halt(0).

init({Strategy, Limit, Nodes}) ->
    {ok, {#{strategy => Strategy, intensity => Limit, period => 3600}, [spec(Node) || Node <- Nodes]}}.

spec({leaf, Name, Restart}) ->
    #{id => Name, restart => Restart, start => {proc_lib, start_link, [?MODULE, leaf, [Name, self()]]}};
spec({sub, Name, Restart, Strategy, Limit, Nodes}) ->
    #{id => Name, restart => Restart, type => supervisor,
      start => {supervisor, start_link, [?MODULE, {Strategy, Limit, Nodes}]}}.

leaf(Name, Parent) ->
    process_flag(trap_exit, true),
    ets:insert(pids, {Name, self()}),
    note([$+ | Name]),
    proc_lib:init_ack(Parent, {ok, self()}),
    receive
        fail -> exit(told_to_fail);
        'end' -> ok;
        {'EXIT', Parent, _} -> note([$- | Name])
    end.

note(What) ->
    ets:insert(log, {atomics:add_get(persistent_term:get(ticket), 1, 1), What}).

taken() ->
    Lines = [What || {_, What} <- ets:tab2list(log)],
    ets:delete_all_objects(log),
    lists:join(" ", Lines).

scenario({Tree, Steps}) ->
    process_flag(trap_exit, true),
    {ok, Root} = supervisor:start_link(?MODULE, Tree),
    say([taken(), " | up | ", states(Root)]),
    steps(Root, Steps),
    ets:delete_all_objects(pids).

steps(Root, []) ->
    exit(Root, shutdown),
    receive {'EXIT', Root, _} -> ok end,
    say([taken(), " | stopped"]);
steps(Root, [Step | Rest]) ->
    Answer = step(Root, Step),
    settle(Root, 5),
    receive
        {'EXIT', Root, _} -> say([taken(), " | melted down"])
    after 0 ->
        say([taken(), " | ", Answer, " | ", states(Root)]),
        steps(Root, Rest)
    end.

step(_, {exit, Name, How}) ->
    case ets:lookup(pids, Name) of
        [{_, Pid}] ->
            Monitor = monitor(process, Pid),
            Pid ! How,
            receive {'DOWN', Monitor, _, _, _} -> "ok" end;
        [] -> "ok"
    end;
step(Root, {Verb, Path, Name}) ->
    case find(Root, Path) of
        none -> "down";
        Pid ->
            case supervisor:Verb(Pid, Name) of
                ok -> "ok";
                {ok, _} -> "ok";
                {error, Reason} -> atom_to_list(Reason)
            end
    end.

find(Pid, []) -> Pid;
find(Pid, [Name | Path]) ->
    case lists:keyfind(Name, 1, supervisor:which_children(Pid)) of
        {_, Below, supervisor, _} when is_pid(Below) -> find(Below, Path);
        _ -> none
    end.

%% A supervisor that answers has dealt with what came before.
settle(_, 0) -> ok;
settle(Root, N) ->
    catch states(Root),
    erlang:yield(),
    settle(Root, N - 1).

states(Pid) ->
    Children = lists:reverse(supervisor:which_children(Pid)),
    lists:join(" ", [[Name, $:, state(Child, Type)] || {Name, Child, Type, _} <- Children]).

state(Child, supervisor) when is_pid(Child) -> ["up(", states(Child), ")"];
state(Child, worker) when is_pid(Child) -> "up";
state(_, _) -> "down".

say(Line) -> io:format("~ts~n", [Line]).
