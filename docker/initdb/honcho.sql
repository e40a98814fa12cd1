-- The image's entrypoint runs this once, as the superuser, if the volume is empty. It creates the database honcho with
-- the extension, and the service's role. Without HONCHO_SERVICE_PASSWORD the role has no password, so that no client can
-- log in with it over the network.
\i /usr/local/share/honcho/database.sql
\getenv service_password HONCHO_SERVICE_PASSWORD
\if :{?service_password}
alter role honcho_service password :'service_password';
\endif
