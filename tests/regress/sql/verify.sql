-- honcho_verify reports books that were cooked by hand.
create extension honcho;
\pset footer off
select honcho_create_coupon('A', 3), honcho_create_coupon('B', 3), honcho_create_coupon('C', 3);
select honcho_claim('ann', 'A'), honcho_claim('bob', 'A'), honcho_claim('ann', 'B');
select * from honcho_verify();
select * from honcho_verify('A');
select * from honcho_verify('NONE');

-- Stock that does not add up.
update coupons set remaining_amount = 3 where name = 'A';
-- A claim that is gone.
delete from claims where coupon_name = 'B';
-- A user who holds it twice, and stock out of range: not without taking down the constraints.
alter table claims drop constraint claims_coupon_name_user_id_key;
alter table coupons drop constraint coupons_remaining_amount_check;
insert into claims (user_id, coupon_name) values ('eve', 'C'), ('eve', 'C');
update coupons set remaining_amount = -1 where name = 'C';
-- A claim without its coupon.
insert into claims (user_id, coupon_name) values ('eve', 'GONE');
select * from honcho_verify() where not holds;

-- Ids that their sequences have not given, as after a switch to a logical replica: they would be given again.
update coupons set remaining_amount = amount - 1;
delete from claims;
alter table claims alter id restart;
insert into claims (id, user_id, coupon_name) values (2, 'ann', 'A'), (default, 'ann', 'B');
select * from honcho_verify('A');
select nextval('claims_id_seq');
alter table coupons alter id restart;
select coupon_name, detail from honcho_verify() where invariant = 'ids' and not holds;
select setval('coupons_id_seq', max(id)) from coupons;
select coupon_name, detail from honcho_verify() where not holds;

drop extension honcho;
